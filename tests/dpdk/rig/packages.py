"""DPDK's test program and the drivers that it needs, as one unpacked tree."""

from __future__ import annotations

from rig import tree
from rig.archive import Archive
from rig.tree import Tree

SUITE = "forky"
"""The release of Debian that has DPDK 25.11."""

PACKAGE = "dpdk-dev"
"""Has the test program. It comes without its dependencies that are no libraries of programs."""

NOT_NEEDED = ("libdpdk-dev", "python3", "sse4.2-support")
"""Dependencies of ``PACKAGE``: headers, an interpreter, and a package that looks at the host."""

DRIVERS = (
    ("librte-meta-net", r"librte-net-virtio-?\d+"),
    ("librte-meta-net", r"librte-net-pcap-?\d+"),
    ("librte-meta-mempool", r"librte-mempool-ring-?\d+"),
)
"""Packages of drivers have DPDK's ABI in their names: who depends on them, and their names."""

PRELOADED = ("librte_net_virtio", "librte_net_pcap", "librte_mempool_ring")
"""Loaded with the program: told to load them itself, DPDK refuses files below /tmp."""


class Packages(Tree):
    """A tree with DPDK in it."""

    @property
    def version(self) -> str:
        """The version of DPDK, as Debian counts."""
        return self.versions[PACKAGE]

    def testpmd(self) -> list[str]:
        """The command that runs the test program."""
        (drivers,) = self.root.glob("usr/lib/x86_64-linux-gnu/dpdk/pmds-*")
        files = [path.name for name in PRELOADED for path in drivers.glob(f"{name}.so.[0-9]*.*")]
        return self.program("usr/bin/dpdk-testpmd", libraries=[drivers], preload=files)


def fetch() -> Packages:
    """The tree, downloaded if it is not in the cache yet."""
    fetched = tree.fetch(tree.CACHE / "dpdk" / SUITE, SUITE, _wanted)
    return Packages(root=fetched.root, versions=fetched.versions)


def _wanted(archive: Archive) -> list[str]:
    libraries = [name for name in archive.dependencies(PACKAGE) if name not in NOT_NEEDED]
    drivers = [archive.dependency(*driver) for driver in DRIVERS]
    return [archive.candidate(PACKAGE), *archive.closure([*libraries, *drivers])]
