"""The hypervisor, dom0's kernel and dom0's programs; and the QEMU that runs them.

The hypervisor and ``libxenctrl`` must be of one release: the interface between them is private to
Xen and changes with each.
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

SUITE = "bookworm"
"""Xen 4.17, Linux 6.1, CPython 3.11, QEMU 7.2."""

DIRECTORY = CACHE / "xen"
PROGRAMS = ("python3.11-minimal", "libpython3.11-stdlib", "libxenmisc4.17")
"""Run in dom0, so they come with every library that they need."""

ARM_EMULATOR = "qemu-system-arm"


@dataclass(frozen=True, kw_only=True)
class Packages:
    """What one architecture of dom0 boots from: ``amd64`` or ``arm64``."""

    architecture: str
    tree: Tree

    @property
    def directory(self) -> Path:
        """Where things made from the packages are kept."""
        return self.tree.root.parent

    @property
    def kernel(self) -> Path:
        return next(self.tree.root.glob("boot/vmlinuz-*"))

    @property
    def hypervisor(self) -> Path:
        name = f"boot/xen-4.17-{self.architecture}"
        return self.tree.root / (f"{name}.gz" if self.architecture == "amd64" else name)

    @property
    def module_directory(self) -> Path:
        release = self.kernel.name.removeprefix("vmlinuz-")
        return self.tree.root / "lib/modules" / release / "kernel"


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """QEMU for the machine: the command's first words and the environment that it needs."""

    command: list[str]
    environment: Mapping[str, str]


def fetch(architecture: str) -> Packages:
    """The packages for ``architecture``, downloaded if they are not in the cache yet."""

    def wanted(archive: Archive) -> list[str]:
        kernel = rf"linux-image-[\w.+-]+-{architecture}"
        alone = (
            "busybox-static",
            f"xen-hypervisor-4.17-{architecture}",
            archive.dependency(f"linux-image-{architecture}", kernel),
        )
        return [*archive.closure(PROGRAMS), *map(archive.candidate, alone)]

    fetched = tree.fetch(DIRECTORY / architecture, SUITE, wanted, architecture)
    return Packages(architecture=architecture, tree=fetched)


def emulator(architecture: str) -> Emulator:
    """QEMU for ``architecture``, from the tree that the guest tests use.

    The one for Arm stands in a tree of its own, with what the first does not have already.
    """
    base = guest.fetch(SUITE)
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

    return tree.fetch(DIRECTORY / "emulator", SUITE, wanted)
