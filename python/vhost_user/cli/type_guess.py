"""What type a back-end's device most likely has: the protocol does not tell.

Disks and network devices are the common ones, and are recognised by their own feature bits. All
other types have few bits, which mean something else with each: of these nothing is guessed.
"""

from collections.abc import Callable

from .device_types import BLOCK, NET

Names = Callable[[int, int], list[str]]
"""The names of feature bits by the number of a device type; ``bit N`` for one without a name."""

_OF_TYPES = (1 << 24) - 1 | ~((1 << 50) - 1)
"""VIRTIO 1.3, "Feature Bits": those that belong to device types."""

_BEYOND_OTHERS = ~((1 << 7) - 1)
"""No type but these two has bits from 7 on."""

_OF_A_DISK = {"BLK_SIZE", "FLUSH", "TOPOLOGY"}
"""A disk has some of these; bits of other types are no higher."""

_LEGACY = {"BARRIER", "SCSI"}
"""Bits that no back-end for disks offers any more, and others do at their places."""


def guess_type(features: int, *, has_config: bool, names: Names) -> int | None:
    """The type's number; None if it could be any."""
    own = features & _OF_TYPES
    as_disk = set(names(own, BLOCK))
    if has_config and as_disk & _OF_A_DISK and not as_disk & _LEGACY and _all_named(as_disk):
        return BLOCK
    if own & _BEYOND_OTHERS and _all_named(set(names(own, NET))):
        return NET
    return None


def _all_named(names: set[str]) -> bool:
    return not any(name.startswith("bit ") for name in names)
