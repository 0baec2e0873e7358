"""Packages of Debian's archive as one unpacked tree in the cache."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .archive import ARCHITECTURE, Archive

CACHE = Path(__file__).resolve().parents[2] / ".cache"

LIBRARY_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADERS = ("lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2")
"""Where the loader is, in older releases and in newer ones."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """An unpacked tree. ``root`` looks like ``/`` of a Debian system that never booted."""

    root: Path
    versions: dict[str, str]

    def program(
        self, path: str, *, libraries: Sequence[Path] = (), preload: Sequence[str] = ()
    ) -> list[str]:
        """The command that runs the program at ``path`` of the tree with the tree's libraries.

        ``libraries`` are directories to look in after the tree's own. An absolute ``path`` names a
        program elsewhere. ``preload`` names libraries to load before the program's own.
        """
        searched = [*(self.root / name for name in LIBRARY_DIRECTORIES), *libraries]
        search = ":".join(map(str, searched))
        first = ["--preload", " ".join(preload)] if preload else []
        return [str(self.loader), "--library-path", search, *first, str(self.root / path)]

    def libraries(self, path: str) -> list[Path]:
        """The shared libraries that the program at ``path`` loads, without the loader."""
        command = self.program(path)
        listed = subprocess.run(
            [*command[:-1], "--list", command[-1]], capture_output=True, text=True, check=True
        )
        return [Path(name) for name in re.findall(r"=> (/\S+)", listed.stdout)]

    @property
    def loader(self) -> Path:
        return next(path for name in LOADERS if (path := self.root / name).exists())


def fetch(
    directory: Path,
    suite: str,
    wanted: Callable[[Archive], list[str]],
    architecture: str = ARCHITECTURE,
    *,
    needed: Sequence[str] = (),
) -> Tree:
    """The tree in ``directory``, downloaded if it is not there yet.

    ``wanted`` names the packages as ``name=version``, asked of an archive with fresh lists. A tree
    that lacks one of the packages ``needed`` is older than the need, and downloaded again.
    """
    with locked(directory):
        manifest = directory / "manifest.json"
        if not manifest.exists() or not _versions(manifest).keys() >= set(needed):
            _download(directory, Archive(suite, directory / "apt", architecture), wanted)
        return Tree(root=directory / "root", versions=_versions(manifest))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds ``directory``, which is made when missing, against other processes."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _versions(manifest: Path) -> dict[str, str]:
    versions: dict[str, str] = json.loads(manifest.read_text())
    return versions


def _download(directory: Path, archive: Archive, wanted: Callable[[Archive], list[str]]) -> None:
    archive.update()
    packages = wanted(archive)
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    archive.unpack(packages, root)
    partial = directory / "manifest.partial"
    partial.write_text(json.dumps(dict(name.split("=", 1) for name in packages), indent=1))
    os.replace(partial, directory / "manifest.json")
