"""Builds the source archive, and wheels from it.

``python3 -m release.build [--libc musl] [--only WORD] [--stage DIRECTORY] OUT`` leaves them in OUT.
The compiler is Debian's, whatever the machine has installed; zig, which comes as a wheel, links
against the oldest C library that a wheel is for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rig import cross
from rig.archive import ArchiveError
from rig.tree import CACHE

from . import box, licences, source
from .box import BuildError
from .kinds import Kind, kinds

MUSL_FLAGS = ["-C", "target-feature=-crt-static", "-C", "link-self-contained=no"]
"""A module of an interpreter uses the interpreter's C library, as a shared one."""


def prepare(stage: Path, out: Path) -> Path:
    """The source archive in ``out``, unpacked in ``stage`` with the notices of its crates."""
    archive = source.pack(out)
    tree = stage / box.SOURCE.name
    shutil.rmtree(tree, ignore_errors=True)
    source.unpack(archive, tree)
    crates = licences.linked(tree / "Cargo.toml", "x86_64-unknown-linux-gnu")
    if faults := list(licences.forbidden(crates)):
        raise BuildError("\n".join(faults))
    (tree / licences.NOTICES).write_text(licences.notices(crates))
    return archive


def build(kind: Kind, stage: Path, out: Path) -> Path:
    """Builds one wheel of the sources in ``stage``."""
    made = stage / "out"
    shutil.rmtree(made, ignore_errors=True)
    box.run(stage, command(kind), environment(kind))
    name = kind.name(source.version())
    if not (made / name).exists():
        raise BuildError(f"maturin made {sorted(p.name for p in made.iterdir())} and not {name}")
    return Path(shutil.copy2(made / name, out / name))


def command(kind: Kind) -> Sequence[str]:
    """What builds a wheel."""
    platform = kind.platform
    words = [*source.MATURIN, "build", "--release", "--locked", "--quiet", "--zig"]
    words += [
        "--compatibility",
        platform.compatibility,
        "--target",
        platform.target,
        "--out",
        str(box.PLACE / "out"),
    ]
    words += ["--interpreter", kind.abi.interpreter]
    if kind.abi.features:
        words += ["--features", ",".join(kind.abi.features)]
    if platform.libc == "musl":
        words += ["-Zbuild-std=std,panic_unwind"]
    return words


def environment(kind: Kind) -> dict[str, str]:
    """What cargo, the compiler and zig are to find in their environment."""
    with_source = kind.platform.libc == "musl"
    found = {
        "RUSTC": str(cross.compiler(with_source=with_source)),
        "SOURCE_DATE_EPOCH": str(source.epoch()),
        "ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    if with_source:
        # Not promised to stay: this is why these wheels have a target of their own.
        found |= {"RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": " ".join(MUSL_FLAGS)}
    return found


def main() -> int:
    """Builds what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python3 -m release.build", description=__doc__)
    parser.add_argument("--libc", choices=["glibc", "musl"], default="glibc")
    parser.add_argument("--only", default="", help="builds wheels whose name has this in it")
    parser.add_argument("--stage", type=Path, default=CACHE.parent / "target/release-stage")
    parser.add_argument("out", type=Path)
    told = parser.parse_args()
    out = told.out.resolve()
    try:
        prepare(told.stage.resolve(), out)
        for kind in kinds(told.libc):
            if told.only in kind.name(source.version()):
                print(build(kind, told.stage.resolve(), out).name, flush=True)
    except (BuildError, ArchiveError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
