"""The programs and the kernel that a guest needs, as one unpacked tree per suite."""

from __future__ import annotations

from pathlib import Path

from rig import tree
from rig.archive import Archive
from rig.tree import Tree

SUITES = ("bookworm", "bookworm-backports")
"""bookworm: QEMU 7.2 and Linux 6.1; bookworm-backports: QEMU 10.0 and Linux 6.12."""

PROGRAMS = ("qemu-system-x86", "e2fsprogs", "iputils-ping")
"""Run from the tree, so they come with every library that they need."""

KERNEL = ("linux-image-cloud-amd64", r"linux-image-[\w.+-]+-cloud-amd64")
"""The package that always depends on the newest kernel, and the kernel's own name."""

STANDALONE = ("busybox-static",)

FIRMWARE_DIRECTORIES = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


class Packages(Tree):
    """A tree with a kernel in it."""

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
    directory = tree.CACHE / "guest" / suite
    fetched = tree.fetch(directory, suite, _wanted, needed=[*PROGRAMS, *STANDALONE])
    return Packages(root=fetched.root, versions=fetched.versions)


def _wanted(archive: Archive) -> list[str]:
    return [
        *archive.closure(PROGRAMS),
        *(archive.candidate(name) for name in (*STANDALONE, archive.dependency(*KERNEL))),
    ]
