#!/usr/bin/env bash
# vm-memory 0.18.0: a range that `check_range` calls valid has no slice when two regions share it.
#
# The guest's memory is two regions that touch, as two memory modules plugged one after the other. A
# buffer of 32 bytes lies half in each. `check_range` accepts it, `write_slice` and `read_slice` move
# all of it, but `get_slice` fails, with an error that blames the back-end's (the host's) address and
# not the guest's. The only way to the bytes in place is `get_slices`, a piece for each region. The
# two also disagree about an empty range: at an address without memory `check_range` accepts 0 bytes,
# and `get_slice` refuses them with InvalidGuestAddress.
#
# Exit: 0 as stated, 1 changed, 77 the crate cannot be had.
set -euo pipefail

version=0.18.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unavailable() {
    echo "unavailable: $*"
    exit 77
}

command -v cargo >/dev/null || unavailable cargo
mkdir "$work/src"
cat >"$work/Cargo.toml" <<END
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
vm-memory = { version = "=$version", features = ["backend-mmap"] }

[workspace]
END
cat >"$work/src/main.rs" <<'END'
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

const REGION: usize = 0x1000;
const LENGTH: usize = 32;

fn main() {
    let regions = [(GuestAddress(0), REGION), (GuestAddress(REGION as u64), REGION)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).expect("two regions that touch");
    let buffer = GuestAddress((REGION - LENGTH / 2) as u64);

    let sent: [u8; LENGTH] = std::array::from_fn(|place| place as u8);
    let mut back = [0xff; LENGTH];
    let written = memory.write_slice(&sent, buffer);
    let read = memory.read_slice(&mut back, buffer);
    let valid = memory.check_range(buffer, LENGTH);
    let slice = memory.get_slice(buffer, LENGTH).map(|slice| slice.len());
    let pieces: Result<Vec<usize>, _> =
        memory.get_slices(buffer, LENGTH).map(|piece| piece.map(|slice| slice.len())).collect();
    println!("check_range:             {valid}");
    println!("write_slice, read_slice: {written:?}, {read:?}, the same bytes: {}", sent == back);
    println!("get_slice:               {slice:?}");
    println!("get_slices:              {pieces:?}");

    let nowhere = GuestAddress(4 * REGION as u64);
    let nothing_valid = memory.check_range(nowhere, 0);
    let nothing = memory.get_slice(nowhere, 0).map(|slice| slice.len());
    println!("0 bytes without memory:  check_range {nothing_valid}, get_slice {nothing:?}");

    let stated = valid
        && written.is_ok()
        && read.is_ok()
        && sent == back
        && matches!(slice, Err(GuestMemoryError::InvalidBackendAddress))
        && matches!(pieces.as_deref(), Ok([16, 16]))
        && nothing_valid
        && matches!(nothing, Err(GuestMemoryError::InvalidGuestAddress(_)));
    println!("{}", if stated { "as stated" } else { "changed" });
    std::process::exit(i32::from(!stated));
}
END

cd "$work"
export CARGO_TARGET_DIR="$work/target"
cargo --quiet fetch || unavailable "vm-memory $version"
cargo --quiet build --jobs 1 || unavailable "a compiler for vm-memory $version"
echo "vm-memory $version"
"$CARGO_TARGET_DIR/debug/finding"
