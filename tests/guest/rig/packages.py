"""The programs and the kernel that a guest needs, as one unpacked tree per suite."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .archive import Archive

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "guest"
SUITES = ("bookworm", "bookworm-backports")
"""bookworm: QEMU 7.2 and Linux 6.1; bookworm-backports: QEMU 10.0 and Linux 6.12."""

PROGRAMS = ("qemu-system-x86", "e2fsprogs")
"""Run from the tree, so they come with every library that they need."""

KERNEL = ("linux-image-cloud-amd64", r"linux-image-[\w.+-]+-cloud-amd64")
"""The package that always depends on the newest kernel, and the kernel's own name."""

STANDALONE = ("busybox-static",)

LIBRARY_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER = "lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True, kw_only=True)
class Packages:
    """An unpacked tree. ``root`` looks like ``/`` of a Debian system that never booted."""

    root: Path
    versions: dict[str, str]

    def program(self, path: str) -> list[str]:
        """The command that runs the program at ``path`` of the tree with the tree's libraries."""
        libraries = ":".join(str(self.root / name) for name in LIBRARY_DIRECTORIES)
        return [str(self.root / LOADER), "--library-path", libraries, str(self.root / path)]

    def libraries(self, path: str) -> list[Path]:
        """The shared libraries that the program at ``path`` loads, without the loader."""
        command = self.program(path)
        listed = subprocess.run(
            [*command[:-1], "--list", command[-1]], capture_output=True, text=True, check=True
        )
        return [Path(name) for name in re.findall(r"=> (/\S+)", listed.stdout)]

    @property
    def loader(self) -> Path:
        return self.root / LOADER

    @property
    def module_directory(self) -> Path:
        return next(self.root.glob(f"**/lib/modules/{self.kernel_release}"))

    @property
    def kernel(self) -> Path:
        return next(self.root.glob("boot/vmlinuz-*"))

    @property
    def kernel_release(self) -> str:
        return self.kernel.name.removeprefix("vmlinuz-")


def fetch(suite: str = "bookworm") -> Packages:
    """The tree of ``suite``, downloaded if it is not in the cache yet."""
    directory = CACHE / suite
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = directory / "manifest.json"
        if not manifest.exists():
            _download(suite, directory, manifest)
        return Packages(root=directory / "root", versions=json.loads(manifest.read_text()))


def _download(suite: str, directory: Path, manifest: Path) -> None:
    archive = Archive(suite, directory / "apt")
    archive.update()
    wanted = [
        *archive.closure(PROGRAMS),
        *(archive.candidate(name) for name in (*STANDALONE, archive.dependency(*KERNEL))),
    ]
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    archive.unpack(wanted, root)
    partial = manifest.with_suffix(".partial")
    partial.write_text(json.dumps(dict(name.split("=", 1) for name in wanted), indent=1))
    os.replace(partial, manifest)
