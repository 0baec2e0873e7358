"""The source archive: what the repository tracks, and the time that its files have."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from .box import BuildError

PROJECT = Path(__file__).resolve().parents[1]
MATURIN = [str(Path(sys.executable).with_name("maturin"))]
OLDEST = 315532800
"""The first second of 1980, before which no entry of a wheel can be."""


def version() -> str:
    """The package's version."""
    manifest = tomllib.loads((PROJECT / "Cargo.toml").read_text())
    return str(manifest["workspace"]["package"]["version"])


def epoch() -> int:
    """The time that a wheel's files have: the commit's, or what the environment says."""
    if told := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(told)
    done = subprocess.run(
        ["git", "-C", str(PROJECT), "log", "-1", "--format=%ct"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else OLDEST


def pack(to: Path) -> Path:
    """Writes the archive into the directory ``to``."""
    command = [*MATURIN, "sdist", "--out", str(to)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
    if subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode != 0:
        raise BuildError("maturin made no source archive: it needs a clone of the repository")
    return to / f"vhost_user-{version()}.tar.gz"


def unpack(archive: Path, to: Path) -> None:
    """Unpacks an archive so that its root is ``to``."""
    to.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
        for member in members:
            member.name = member.name.partition("/")[2]
        packed.extractall(to, [member for member in members if member.name], filter="fully_trusted")
