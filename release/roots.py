"""Clean systems: packages of Debian unpacked side by side, in which nothing was ever installed.

A command runs in a system as if it were its root, in namespaces of its own: without the network,
with files that are gone afterwards. A system for another processor runs in QEMU's emulation of one
process, which the kernel is told of in the same namespaces. Nothing of the host is changed, and
nothing needs its root.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.tree import CACHE, Tree, fetch

DIRECTORY = CACHE / "roots"
EMULATOR_SUITE = "trixie"

ENTER = r"""
set -e
lower=$1 upper=$2 given=$3 emulator=$4
shift 4
mkdir "$upper/files" "$upper/work" "$upper/root"
options="lowerdir=$lower,upperdir=$upper/files,workdir=$upper/work"
mount -t overlay overlay -o "$options" "$upper/root"
cd "$upper/root"
mkdir -p proc dev tmp given
mount -t proc proc proc
if [ -n "$emulator" ]; then
    mount -t binfmt_misc binfmt_misc proc/sys/fs/binfmt_misc
    zeros='\x00\x00\x00\x00\x00\x00\x00\x00' ones='\xff\xff\xff\xff\xff\xff\xff\xff'
    magic='\x7fELF\x02\x01\x01\x00'$zeros'\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00'$ones'\xfe\xff\xff\xff'
    printf %s ":aarch64:M::$magic:$mask:$emulator:F" >proc/sys/fs/binfmt_misc/register
fi
mount --rbind /dev dev
mount --bind "$given" given
exec chroot . "$@"
"""
"""Programs for Arm are told by the ELF header's class, byte order, type and machine."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """A system, and the interpreters in it. ``name`` is for people, ``suite`` is Debian's."""

    name: str
    suite: str
    machine: str = "x86_64"
    pythons: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Packages beside the interpreters."""

    @property
    def architecture(self) -> str:
        """Debian's name of the processor."""
        return {"x86_64": "amd64", "aarch64": "arm64"}[self.machine]

    def tree(self) -> Tree:
        """The system's files, downloaded if they are not there yet."""
        wanted = ["base-files", *self.pythons, *self.others]
        directory = DIRECTORY / f"{self.suite}-{self.architecture}"
        return fetch(directory, self.suite, lambda a: a.closure(wanted), self.architecture)

    def run(
        self, command: Sequence[str], given: Path, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the system, which finds the files of ``given`` in ``/given``."""
        emulator = str(_emulator()) if self.machine == "aarch64" else ""
        spaces = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--ipc"]
        with tempfile.TemporaryDirectory(prefix="vhost-user-root-") as upper:
            words = [str(self.tree().root), upper, str(given), emulator, *command]
            return subprocess.run(
                ["unshare", *spaces, "--kill-child", "sh", "-c", ENTER, "sh", *words],
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )


def _emulator() -> Path:
    tree = fetch(DIRECTORY / "emulator", EMULATOR_SUITE, lambda a: [a.candidate("qemu-user")])
    return tree.root / "usr/bin/qemu-aarch64"


ROOTS = (
    Root(name="Debian 12", suite="bookworm", pythons=("python3.11",)),
    Root(name="Debian 13", suite="trixie", pythons=("python3.13",)),
    Root(name="Debian unstable", suite="sid", pythons=("python3.14", "python3.15")),
    Root(name="Debian 12", suite="bookworm", machine="aarch64", pythons=("python3.11",)),
    Root(name="Debian unstable", suite="sid", machine="aarch64", pythons=("python3.15",)),
)

OLDEST = tuple(
    Root(name="Debian 11", suite="bullseye", machine=machine, others=("libc6", "musl"))
    for machine in ("x86_64", "aarch64")
)
"""The oldest C libraries in reach: glibc 2.31 and musl 1.2.2. The Python there is too old."""
