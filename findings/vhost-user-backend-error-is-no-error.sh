#!/usr/bin/env bash
# vhost-user-backend 0.24.0: `Error`, which `VhostUserDaemon` returns, does not implement
# `std::error::Error`.
#
# It has `Debug` and `Display`, and carries the errors of the vhost crate, which are errors. But a
# daemon whose `main` returns `Result<(), Box<dyn std::error::Error>>` cannot pass it on with `?`, and
# neither `source()` nor a library of errors gets at what is inside.
#
# Exit: 0 as stated, 1 changed, 77 the crate cannot be had.
set -euo pipefail

version=0.24.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unavailable() {
    echo "unavailable: $*"
    exit 77
}

command -v cargo >/dev/null || unavailable cargo
mkdir -p "$work/src/bin"
cat >"$work/Cargo.toml" <<END
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
vhost-user-backend = "=$version"

[workspace]
END
cat >"$work/src/bin/shown.rs" <<'END'
fn shown<T: std::fmt::Debug + std::fmt::Display>() {}

fn main() {
    shown::<vhost_user_backend::Error>();
}
END
cat >"$work/src/bin/error.rs" <<'END'
fn error<T: std::error::Error>() {}

fn main() {
    error::<vhost_user_backend::Error>();
}
END
cd "$work"
cargo fetch --quiet 2>/dev/null || unavailable "vhost-user-backend $version"
echo "vhost-user-backend $version"

checks() {
    CARGO_TARGET_DIR="$work/target" cargo check --quiet --bin "$1" >"$work/$1.log" 2>&1
}

checks shown && echo "Debug and Display:  yes" || { cat "$work/shown.log"; exit 1; }
if checks error; then
    echo "std::error::Error:  yes"
    echo "changed"
    exit 1
fi
grep --quiet 'error\[E0277\]' "$work/error.log" || { cat "$work/error.log"; exit 1; }
echo "std::error::Error:  no (E0277)"
echo "as stated"
