"""What builds the package for Arm on an x86-64 host: Debian's compiler, libraries and linker.

``python3 -m rig.cross COMMAND...`` fetches them and runs a command whose cargo uses them. The
compiler is the one that Debian keeps new in its stable release, as its browsers need it; compiler
and standard library of one build come together there, for both processors.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .archive import Archive, ArchiveError
from .tree import CACHE, Tree, fetch, locked

DIRECTORY = CACHE / "cross"
COMPILER_SUITE, SUITE = "trixie", "bookworm"
"""The first has a compiler that is new enough; the second has the C library of dom0."""

COMPILER, LIBRARIES = "rustc-web", "libstd-rust-web-dev"
SOURCE = "rust-web-src"
LINKER = "binutils-aarch64-linux-gnu"
START_FILES = ("libc6", "libc6-dev", "libgcc-s1", "libgcc-12-dev")

TARGET = "aarch64-unknown-linux-gnu"
TRIPLET = "aarch64-linux-gnu"
START, END = ("crti.o", "crtbeginS.o"), ("crtendS.o", "crtn.o")
"""What a shared library is linked between: ``System V Application Binary Interface``."""

AS_COMPILER = """\
set -f
for word do
    shift
    case $word in
        -Wl,*) IFS=,; set -- "$@" ${word#-Wl,}; unset IFS ;;
        -nodefaultlibs) ;;
        *) set -- "$@" "$word" ;;
    esac
done
"""
"""Turns a C compiler's words into the linker's."""


def environment() -> dict[str, str]:
    """What cargo must find in its environment to build for Arm."""
    with locked(DIRECTORY):
        rustc, linker = _compiler(), _linker()
    name = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}"
    return {"RUSTC": str(rustc), f"{name}_LINKER": str(linker)}


def compiler(*, with_source: bool = False) -> Path:
    """A script that is rustc, with the standard libraries of both processors, and with their source
    where cargo looks for it if that is wanted: for a target that Debian has no library of.
    """
    with locked(DIRECTORY):
        if with_source:
            _add_source()
        return _compiler()


def _add_source() -> None:
    tree = fetch(DIRECTORY / "source", COMPILER_SUITE, lambda a: [a.candidate(SOURCE)])
    (source,) = (tree.root / "usr/src").glob("rustc-*")
    link = DIRECTORY / "compiler/root/usr/lib/rustlib/src/rust"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(source)


def _compiler() -> Path:
    """A script that is rustc, with the standard libraries of both processors."""

    def for_host(archive: Archive) -> list[str]:
        return [*archive.closure([LIBRARIES]), archive.candidate(COMPILER)]

    host = fetch(DIRECTORY / "compiler", COMPILER_SUITE, for_host)
    other = fetch(
        DIRECTORY / "library", COMPILER_SUITE, lambda a: [a.candidate(LIBRARIES)], "arm64"
    )
    if (ours := host.versions[LIBRARIES]) != (theirs := other.versions[LIBRARIES]):
        raise ArchiveError(f"{LIBRARIES} is {ours} for the host and {theirs} for Arm: try later")
    libraries = Path("usr/lib/rustlib", TARGET)
    link = host.root / libraries
    link.unlink(missing_ok=True)
    link.symlink_to(other.root / libraries)
    return _script("rustc", [*host.program("usr/bin/rustc"), "--sysroot", str(host.root / "usr")])


def _linker() -> Path:
    """A script that links a shared library, with the arguments that rustc has for a C compiler."""
    tools = fetch(DIRECTORY / "linker", SUITE, lambda a: a.closure([LINKER]))
    system = fetch(
        DIRECTORY / "system", SUITE, lambda a: [a.candidate(n) for n in START_FILES], "arm64"
    )
    places = [f"usr/lib/{TRIPLET}", f"usr/lib/gcc/{TRIPLET}/12", f"lib/{TRIPLET}"]
    first = [
        *tools.program(f"usr/bin/{TRIPLET}-ld"),
        f"--sysroot={system.root}",
        *(f"-L{system.root / place}" for place in places),
        *(_found(system, places, name) for name in START),
    ]
    return _script("cc", first, [_found(system, places, name) for name in END], AS_COMPILER)


def _found(tree: Tree, places: Sequence[str], name: str) -> str:
    return next(str(tree.root / p / name) for p in places if (tree.root / p / name).exists())


def _script(name: str, first: Sequence[str], last: Sequence[str] = (), before: str = "") -> Path:
    path = DIRECTORY / name
    path.write_text(f'#!/bin/sh\n{before}exec {shlex.join(first)} "$@" {shlex.join(last)}\n')
    path.chmod(0o755)
    return path


def main(command: Sequence[str]) -> int:
    try:
        found = environment()
    except ArchiveError as error:
        print(f"cross: {error}", file=sys.stderr)
        return 1
    return subprocess.run(command, env={**os.environ, **found}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
