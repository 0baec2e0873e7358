"""An ext4 image read outside the guest, by e2fsprogs and not by a kernel."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from .rig.packages import Packages

CHECKED = (0, 1)
"""Exit status of e2fsck: nothing to do; errors corrected, which a journal's replay counts as."""


class Ext4Image:
    """The file system in the file at ``path``."""

    def __init__(self, packages: Packages, path: Path) -> None:
        self._packages = packages
        self.path = path

    def check(self) -> None:
        """Fail unless the file system is consistent as it stands, nothing left to replay."""
        self._run("sbin/e2fsck", "-fn", str(self.path))

    def replay(self) -> None:
        """Replay the journal as the next mount would, and check the result."""
        self._run("sbin/e2fsck", "-fp", str(self.path), allowed=CHECKED)
        self.check()

    def checksums(self, directory: Path) -> dict[str, str]:
        """SHA-256 of each regular file by its path, after a copy of all to ``directory``."""
        directory.mkdir()
        self._run("sbin/debugfs", "-R", f"rdump / {directory}", str(self.path))
        files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(directory)): _sha256(path) for path in files}

    def _run(self, program: str, *arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run(
            [*self._packages.program(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        if done.returncode not in allowed:
            words = done.stdout.decode(errors="replace")
            raise AssertionError(f"{program} ended with {done.returncode}: {words}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
