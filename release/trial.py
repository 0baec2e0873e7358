"""Installs the wheels into clean systems and uses them there.

``python3 -m release.trial DIRECTORY`` does so with the wheels of a directory, in every system that
there is a wheel for, and prints what was installed where. ``--table FILE`` also writes that into a
document, between two marks.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.document import blocks
from rig.archive import ArchiveError

from .kinds import ABIS, kind_of
from .roots import DIRECTORY, ROOTS, Root
from .source import PROJECT

LIMIT = {"x86_64": 300.0, "aarch64": 1200.0}
"""Seconds for one system; emulation takes its time."""

REQUIREMENTS = PROJECT / "release/requirements-trial.txt"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
KINDS_HEAD = "| wheel | serves | processors | run |\n|---|---|---|---|\n"
HEAD = "| system | Python | C library | processor | installed |\n|---|---|---|---|---|\n"


class TrialError(Exception):
    """A wheel does not install or does not work."""


@dataclass(frozen=True)
class Row:
    """What was seen in one system with one interpreter."""

    system: str
    python: str
    libc: str
    machine: str
    tag: str

    def __str__(self) -> str:
        return f"| {self.system} | {self.python} | {self.libc} | {self.machine} | `{self.tag}` |"


def given(wheels: Sequence[Path], to: Path) -> None:
    """What a user has who has no network: wheels, pip, pytest, and the README's disk and test."""
    for wheel in wheels:
        shutil.copy(wheel, to)
    for tool in downloaded():
        shutil.copy(tool, to)
    shutil.copy(Path(__file__).with_name("inside.py"), to)
    for block in blocks((PROJECT / "README.md").read_text()):
        if named := re.fullmatch(r"file: (\w+\.py)", block.note):
            (to / named[1]).write_text(block.text)


def downloaded() -> list[Path]:
    """Wheels of pip and pytest, and of all that pytest needs: they run on every Python."""
    place = DIRECTORY / "tools"
    if not (done := place / "requirements.txt").exists() or (
        done.read_text() != REQUIREMENTS.read_text()
    ):
        shutil.rmtree(place, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
        subprocess.run([*command, "-r", str(REQUIREMENTS), "-d", str(place)], check=True)
        shutil.copy(REQUIREMENTS, done)
    return sorted(place.glob("*.whl"))


def try_in(root: Root, python: str, files: Path) -> Row:
    """Installs and uses the package in one system."""
    done = root.run([f"/usr/bin/{python}", "/given/inside.py"], files, LIMIT[root.machine])
    if done.returncode != 0:
        raise TrialError(f"{root.name}, {python}, {root.machine}:\n{done.stdout}{done.stderr}")
    seen = json.loads(done.stdout.splitlines()[-1])
    (tag,) = {tag.rsplit("-", 1)[-1] for tag in seen["tags"]}
    abis = [tag.split("-")[:2] for tag in seen["tags"]]
    abi = f"{abis[0][0]}-{'.'.join(dict.fromkeys(abi for _, abi in abis))}"
    return Row(root.name, seen["python"], seen["libc"], seen["machine"], f"{abi}-{tag}")


def overview(wheels: Sequence[str], rows: Sequence[Row]) -> str:
    """A line for each kind of wheel: where it was run, if it was."""
    lines = []
    for abi in ABIS:
        tags = [kind_of(name).platform for name in wheels if f"-{abi.tag}-" in name]
        machines = ", ".join(platform.machine for platform in tags)
        seen = [row for row in rows if row.tag.startswith(f"{abi.tag}-")]
        versions = ", ".join(sorted({f"{row.python} ({row.machine})" for row in seen}))
        if tags:
            run = versions or "**built, not run**"
            lines.append(f"| `{abi.tag}` | {abi.serves} | {machines} | {run} |\n")
    return KINDS_HEAD + "".join(lines)


def write(document: Path, wheels: Sequence[str], rows: Sequence[Row]) -> None:
    """Puts both tables between the marks of a document."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TrialError(f"{document} has no place for the table: {BEGIN}{END}")
    lines = "".join(f"{row}\n" for row in rows)
    document.write_text(f"{before}{BEGIN}\n{overview(wheels, rows)}\n{HEAD}{lines}\n{END}{after}")


def main() -> int:
    """Tries what the command line names."""
    parser = argparse.ArgumentParser(prog="python3 -m release.trial", description=__doc__)
    parser.add_argument("--table", type=Path)
    parser.add_argument("directory", type=Path)
    told = parser.parse_args()
    wheels = sorted(told.directory.glob("*.whl"))
    platforms = [kind_of(wheel.name).platform for wheel in wheels]
    machines = {platform.machine for platform in platforms if platform.libc == "glibc"}
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="vhost-user-given-") as files:
            given(wheels, Path(files))
            for root in (root for root in ROOTS if root.machine in machines):
                for python in root.pythons:
                    rows.append(try_in(root, python, Path(files)))
                    print(rows[-1], flush=True)
        if told.table:
            write(told.table, [wheel.name for wheel in wheels], rows)
    except (ArchiveError, TrialError) as error:
        print(f"trial: {error}", file=sys.stderr)
        return 1
    if not rows:
        print(f"trial: {told.directory} has no wheel for any system", file=sys.stderr)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
