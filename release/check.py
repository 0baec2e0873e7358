"""Examines what is to be handed out.

``python3 -m release.check DIRECTORY`` holds every wheel and the source archive there against what
their names promise, with the tools that the ecosystem has and with our own check of symbols.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rig.tree import CACHE, fetch

from . import licences, symbols
from .kinds import Kind, kind_of
from .source import PROJECT

LIMIT_BYTES = 1_500_000
"""The largest wheel: a package that waits for storage need not be as large as a numeric library."""

MUSL_SUITE = "bullseye"
"""Where Debian has its oldest musl that is in reach: 1.2.2."""

DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


def faults(wheel: Path) -> Iterator[str]:
    """What is wrong with a wheel, in sentences."""
    kind = kind_of(wheel.name)
    size = wheel.stat().st_size
    if size > LIMIT_BYTES:
        yield f"it has {size} bytes, and {LIMIT_BYTES} are the limit"
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(wheel) as packed:
        packed.extractall(directory)
        root = Path(directory)
        (module,) = root.glob("vhost_user/_core*.so")
        yield from _symbol_faults(module, kind)
        yield from _content_faults(root, kind)
    yield from _tool_faults(wheel, kind)


def _symbol_faults(module: Path, kind: Kind) -> Iterator[str]:
    platform = kind.platform
    known = musl_names(platform.machine) if platform.libc == "musl" else ()
    needed = symbols.needs(module)
    for fault in symbols.faults(needed, platform.libc, platform.version, known):
        yield f"{module.name}: {fault}"


def musl_names(machine: str) -> set[str]:
    """The symbols that the oldest musl in reach has."""
    directory = CACHE / "roots" / f"musl-{machine}"
    tree = fetch(directory, MUSL_SUITE, lambda a: [a.candidate("musl")], DEBIAN[machine])
    return symbols.names(tree.root / f"usr/lib/{machine}-linux-musl/libc.so")


def _content_faults(root: Path, kind: Kind) -> Iterator[str]:
    """Components and notices that are missing, and names of the machine that built it."""
    (info,) = root.glob("*.dist-info")
    told = [json.loads(path.read_text()) for path in info.glob("sboms/*.json")]
    components = {(c["name"], c["version"]) for bom in told for c in bom.get("components", [])}
    notices = info / "licenses" / licences.NOTICES
    text = notices.read_text() if notices.exists() else ""
    for crate in licences.linked(PROJECT / "Cargo.toml", kind.platform.target):
        if (crate.name, crate.version) not in components:
            yield f"the list of components lacks {crate.name} {crate.version}"
        if f"{crate.name} {crate.version} (" not in text:
            yield f"{licences.NOTICES} lacks {crate.name} {crate.version}"
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        for private in (str(PROJECT), str(Path.home()) + "/"):
            if private.encode() in path.read_bytes():
                yield f"{path.relative_to(root)} names a directory of this machine: {private}"


def _tool_faults(wheel: Path, kind: Kind) -> Iterator[str]:
    """What the ecosystem's checkers say."""
    if kind.platform.libc == "glibc":
        yield from _auditwheel_faults(wheel, kind)
    if kind.abi.tag == "cp311-abi3":
        yield from _complaint("abi3audit", "--strict", str(wheel))
    yield from _complaint("check-wheel-contents", str(wheel))


def _auditwheel_faults(wheel: Path, kind: Kind) -> Iterator[str]:
    done = _run("auditwheel", "show", str(wheel))
    found = re.search(r'following platform tag:\s+"(\w+)"', done.stdout)
    tag = found[1] if found else ""
    if version(tag) is None or version(tag) > kind.platform.version:  # type: ignore[operator]
        yield f"auditwheel says {tag or done.stdout + done.stderr} of it"


def version(tag: str) -> tuple[int, int] | None:
    """The oldest glibc of a ``manylinux`` tag."""
    found = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return (int(found[1]), int(found[2])) if found else None


def _complaint(*command: str) -> Iterator[str]:
    done = _run(*command)
    if done.returncode != 0:
        yield f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run([str(program), *command[1:]], capture_output=True, text=True, check=False)


def examine(directory: Path) -> Iterator[str]:
    """All faults of the files in a directory. Prints a line for each file that has none."""
    wheels = sorted(directory.glob("*.whl"))
    archives = sorted(directory.glob("*.tar.gz"))
    if not wheels or not archives:
        yield f"{directory} has {len(wheels)} wheels and {len(archives)} source archives"
    for wheel in wheels:
        found = [f"{wheel.name}: {fault}" for fault in faults(wheel)]
        yield from found
        if not found:
            print(f"{wheel.name}: {wheel.stat().st_size} bytes, as promised", flush=True)
    yield from _complaint("twine", "check", "--strict", *map(str, [*wheels, *archives]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what is wrong, and says so in its status."""
    parser = argparse.ArgumentParser(prog="python3 -m release.check", description=__doc__)
    parser.add_argument("directory", type=Path)
    found = list(examine(parser.parse_args(arguments).directory))
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
