"""DPDK's test program, Open vSwitch with DPDK, and the drivers of both, as one unpacked tree."""

from __future__ import annotations

from rig import tree
from rig.archive import Archive
from rig.tree import Tree

SUITE = "forky"
"""The release of Debian that has DPDK 25.11."""

DPDK = "dpdk-dev"
SWITCH = ("openvswitch-switch-dpdk", "openvswitch-switch", "openvswitch-common")
"""Unpacked without all their dependencies: what they need of them are libraries."""

PROGRAMS_LIBRARIES = r"lib(?!dpdk-dev)[\w.+-]+|ibverbs-providers"

DRIVERS = (
    ("librte-meta-net", r"librte-net-virtio-?\d+"),
    ("librte-meta-net", r"librte-net-pcap-?\d+"),
    ("librte-meta-mempool", r"librte-mempool-ring-?\d+"),
)
"""Packages of drivers have DPDK's ABI in their names: who depends on them, and their names."""

PRELOADED = ("librte_net_virtio", "librte_net_pcap", "librte_mempool_ring")
"""Loaded with the program: told to load them itself, DPDK refuses files below /tmp."""

MEMORY = ("--no-huge", "--in-memory", "-m", "256", "--no-pci", "--no-telemetry")
"""Options for 256 MiB of ordinary memory, which a front-end shares, and nothing of the host's."""


class Packages(Tree):
    """A tree with DPDK in it."""

    @property
    def dpdk_version(self) -> str:
        """As Debian counts."""
        return self.versions[DPDK]

    @property
    def switch_version(self) -> str:
        """Open vSwitch's, as Debian counts."""
        return self.versions[SWITCH[0]]

    def driver(self, path: str) -> list[str]:
        """The command that runs a program of DPDK with the drivers that the tests use."""
        (drivers,) = self.root.glob("usr/lib/x86_64-linux-gnu/dpdk/pmds-*")
        files = [path.name for name in PRELOADED for path in drivers.glob(f"{name}.so.[0-9]*.*")]
        return self.program(path, libraries=[drivers], preload=files)

    def testpmd(self) -> list[str]:
        """The command that runs DPDK's test program."""
        return self.driver("usr/bin/dpdk-testpmd")


def fetch() -> Packages:
    """The tree, downloaded if it is not in the cache yet."""
    needed = (DPDK, *SWITCH)
    fetched = tree.fetch(tree.CACHE / "dpdk" / SUITE, SUITE, _wanted, needed=needed)
    return Packages(root=fetched.root, versions=fetched.versions)


def _wanted(archive: Archive) -> list[str]:
    drivers = [archive.dependency(*driver) for driver in DRIVERS]
    return archive.with_libraries([DPDK, *SWITCH], PROGRAMS_LIBRARIES, drivers)
