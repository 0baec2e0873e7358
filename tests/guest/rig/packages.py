"""The programs and the kernels that the guests need, as one unpacked tree per suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rig import tree
from rig.archive import Archive, numbers
from rig.tree import Tree

PROGRAMS = ("qemu-system-x86", "e2fsprogs", "iputils-ping")
"""Run from the tree, so they come with every library that they need."""

KERNEL = ("linux-image-cloud-amd64", r"linux-image-[\w.+-]+-cloud-amd64")
"""The package that always depends on the newest kernel, and the kernel's own name."""

KERNEL_PARTS = r"linux-(binary|modules)-[\w.+-]+"
"""Where image and modules are from Linux 7 on: the kernel's own package depends on these."""

STANDALONE = ("busybox-static",)

TOOLS = (
    "base-files",
    *("qemu-utils", "ovmf", "mtools", "grub-common", "grub-pc-bin", "grub-efi-amd64-bin"),
    *("libvirt-daemon", "libvirt-daemon-common", "libvirt-daemon-driver-qemu"),
    *("libvirt-daemon-log", "libvirt-common", "libvirt-clients"),
)
"""Of the newest suite alone, unpacked without all their dependencies: what they need are libraries.
The first has ``/bin``, ``/lib`` and ``/sbin``, which are links into ``/usr`` in newer releases.
"""

BLOCK_DRIVERS = "qemu-block-extra"
"""Unpacked without the libraries of its drivers, but for those in ``TOOLS_LIBRARIES``."""

TOOLS_LIBRARIES = ("libblkio1", "libpython3-stdlib", "python3-minimal")
"""The first is for disks; a Python that can load it comes along, with the C library it needs."""

FIRMWARE_DIRECTORIES = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite of the archive with the versions that the tests were written for.

    What the archive has is newer some day, and taken as it is; older, and it is refused.
    """

    name: str
    qemu: str
    linux: str


SUITES = {
    suite.name: suite
    for suite in (
        Suite(name="bookworm", qemu="7.2", linux="6.1"),
        Suite(name="bookworm-backports", qemu="10.0", linux="6.12"),
        Suite(name="trixie", qemu="10.0", linux="6.12"),
        Suite(name="trixie-backports", qemu="11.1", linux="7.3"),
    )
}
OLDEST, MIDDLE, NEWEST = "bookworm", "trixie", "trixie-backports"


class Packages(Tree):
    """A tree with a kernel in it."""

    @property
    def module_directory(self) -> Path:
        return self.root / "lib/modules" / self.kernel_release

    @property
    def kernel(self) -> Path:
        places = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
        return next(path for place in places for path in self.root.glob(place))

    @property
    def kernel_release(self) -> str:
        name = self.kernel.name
        return self.kernel.parent.name if name == "vmlinuz" else name.removeprefix("vmlinuz-")

    @property
    def redial(self) -> str:
        """QEMU's option for a socket: each second it dials again after a loss."""
        return "reconnect-ms=1000" if self.qemu_version >= (9, 2) else "reconnect=1"

    @property
    def qemu_version(self) -> tuple[int, int]:
        """QEMU's first two numbers: 7.2 has other options than 11.1."""
        major, minor = numbers(self.versions[PROGRAMS[0]])[:2]
        return major, minor


def fetch(suite: str = OLDEST) -> Packages:
    """The tree of ``suite``, downloaded if it is not in the cache yet."""
    directory = tree.CACHE / "guest" / suite
    needed = [*PROGRAMS, *STANDALONE]
    if suite == NEWEST:
        needed += [*TOOLS, BLOCK_DRIVERS, *TOOLS_LIBRARIES]
    fetched = tree.fetch(directory, suite, lambda a: _wanted(a, SUITES[suite]), needed=needed)
    return Packages(root=fetched.root, versions=fetched.versions)


def is_newest(packages: Packages) -> bool:
    """Whether a tree is of the newest suite that the tests know."""
    return packages.root == fetch(NEWEST).root


def _wanted(archive: Archive, suite: Suite) -> list[str]:
    archive.at_least(PROGRAMS[0], suite.qemu)
    archive.at_least(KERNEL[0], suite.linux)
    wanted = [
        *archive.closure(PROGRAMS),
        *map(archive.candidate, (*STANDALONE, *_kernel(archive))),
    ]
    if suite.name == NEWEST:
        wanted += archive.with_libraries(TOOLS, more=TOOLS_LIBRARIES)
        wanted.append(archive.candidate(BLOCK_DRIVERS))
    return list(dict.fromkeys(wanted))


def _kernel(archive: Archive) -> list[str]:
    """The packages that the newest kernel consists of."""
    image = archive.dependency(*KERNEL)
    return [image, *archive.dependencies(image, KERNEL_PARTS)]
