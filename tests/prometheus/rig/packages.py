"""Prometheus and promtool, as one unpacked tree."""

from __future__ import annotations

from rig import tree
from rig.archive import Archive
from rig.tree import Tree

SUITE = "bookworm"
"""The release of Debian whose Prometheus is run."""

PACKAGE = "prometheus"


def fetch() -> Tree:
    """The tree, downloaded if it is not in the cache yet."""
    return tree.fetch(tree.CACHE / "prometheus" / SUITE, SUITE, _wanted, needed=[PACKAGE])


def _wanted(archive: Archive) -> list[str]:
    return archive.with_libraries([PACKAGE], r"libc6")
