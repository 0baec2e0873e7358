"""The hypervisor, dom0's kernel and dom0's programs; and the QEMU that runs them.

The hypervisor and ``libxenctrl`` must be of one release: the interface between them is private to
Xen and changes with each. The kernel may be of another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guest.rig import packages as guest
from rig import tree
from rig.archive import Archive
from rig.tree import CACHE, Tree

DIRECTORY = CACHE / "xen"


@dataclass(frozen=True, kw_only=True)
class Release:
    """What dom0 is made of: Xen and programs of ``suite``, and the newest kernel of ``linux``."""

    xen: str
    python: str
    suite: str
    linux: str


OLD = Release(xen="4.17", python="3.11", suite="bookworm", linux="bookworm")
"""With Linux 6.1."""

STABLE = Release(xen="4.20", python="3.13", suite="trixie", linux="trixie")
"""With Linux 6.12."""

NEW = Release(xen="4.20", python="3.13", suite="trixie", linux="trixie-backports")
"""With Linux 7.3 or newer."""

KERNEL_PARTS = r"linux-(binary|modules)-[\w.+-]+"
"""What the package of a kernel from Linux 7 on depends on, as it has no files of its own."""

EMULATOR_SUITE = "bookworm"
"""QEMU 7.2."""

ARM_EMULATOR = "qemu-system-arm"


@dataclass(frozen=True, kw_only=True)
class Packages:
    """What one architecture of dom0 boots from: ``amd64`` or ``arm64``."""

    release: Release
    architecture: str
    programs: Tree
    linux: Tree

    @property
    def directory(self) -> Path:
        """Where things made from the packages are kept."""
        return self.linux.root.parent

    @property
    def kernel(self) -> Path:
        places = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
        return next(path for place in places for path in self.linux.root.glob(place))

    @property
    def hypervisor(self) -> Path:
        name = f"boot/xen-{self.release.xen}-{self.architecture}"
        return self.programs.root / (f"{name}.gz" if self.architecture == "amd64" else name)

    @property
    def module_directory(self) -> Path:
        return next(self.linux.root.glob("**/lib/modules/*/kernel"))

    @property
    def manifests(self) -> list[Path]:
        """Files that are newer when the packages are."""
        return [tree.root.parent / "manifest.json" for tree in (self.programs, self.linux)]


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """QEMU for the machine: the command's first words and the environment that it needs."""

    command: list[str]
    environment: Mapping[str, str]


def fetch(release: Release, architecture: str) -> Packages:
    """The packages for ``architecture``, downloaded if they are not in the cache yet."""
    return Packages(
        release=release,
        architecture=architecture,
        programs=programs(release, architecture),
        linux=_linux(release.linux, architecture),
    )


def programs(release: Release, architecture: str) -> Tree:
    """The hypervisor and what runs in dom0, with every library that it needs."""

    def wanted(archive: Archive) -> list[str]:
        run = (
            f"python{release.python}-minimal",
            f"libpython{release.python}-stdlib",
            f"libxenmisc{release.xen}",
        )
        alone = ("busybox-static", f"xen-hypervisor-{release.xen}-{architecture}")
        return [*archive.closure(run), *map(archive.candidate, alone)]

    place = DIRECTORY / f"{release.suite}-{architecture}"
    return tree.fetch(place, release.suite, wanted, architecture)


def _linux(suite: str, architecture: str) -> Tree:
    """The newest kernel of ``suite``, without what it depends on."""

    def wanted(archive: Archive) -> list[str]:
        name = rf"linux-image-[\w.+-]+-{architecture}"
        image = archive.dependency(f"linux-image-{architecture}", name)
        parts = archive.dependencies(image, KERNEL_PARTS)
        return [archive.candidate(part) for part in (image, *parts)]

    place = DIRECTORY / f"linux-{suite}-{architecture}"
    return tree.fetch(place, suite, wanted, architecture)


def emulator(architecture: str) -> Emulator:
    """QEMU for ``architecture``, from the tree that the guest tests use.

    The one for Arm stands in a tree of its own, with what the first does not have already.
    """
    base = guest.fetch(EMULATOR_SUITE)
    modules = base.root / "usr/lib/x86_64-linux-gnu/qemu"
    environment = dict(os.environ, QEMU_MODULE_DIR=str(modules))
    if architecture == "amd64":
        command = base.program("usr/bin/qemu-system-x86_64")
        for directory in guest.FIRMWARE_DIRECTORIES:
            command += ["-L", str(base.root / directory)]
        return Emulator(command=command, environment=environment)
    arm = _arm_emulator(base).root
    libraries = [arm / name for name in tree.LIBRARY_DIRECTORIES]
    program = str(arm / "usr/bin/qemu-system-aarch64")
    return Emulator(command=base.program(program, libraries=libraries), environment=environment)


def _arm_emulator(base: Tree) -> Tree:
    present = {f"{name}={version}" for name, version in base.versions.items()}

    def wanted(archive: Archive) -> list[str]:
        return [name for name in archive.closure([ARM_EMULATOR]) if name not in present]

    return tree.fetch(DIRECTORY / "emulator", EMULATOR_SUITE, wanted)
