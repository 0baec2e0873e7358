"""Memory of a Xen domain, as a front-end tells a back-end of it."""

from dataclasses import dataclass, fields
from enum import IntFlag
from typing import final


class XenFlags(IntFlag):
    """How a region is to be mapped: QEMU "Vhost-user Protocol", "Xen mmap flags"."""

    FOREIGN = 0x1
    """By frames, through the control of domains."""
    GRANT = 0x2
    """By grant references."""
    MORE = 0x4
    """More than the regions may be mapped: in the designs "review" and "message" only."""
    NO_ADVANCE_RUST_VMM = 0x8
    """As ``NO_ADVANCE``, in the numbering of rust-vmm."""
    NO_ADVANCE = 0x100
    """Not when the region is told, but when it is accessed. With ``GRANT``."""


@final
@dataclass(frozen=True, kw_only=True)
class XenRegion:
    """A region of a Xen domain's memory, as a front-end tells a back-end of it.

    ``guest_address``: the first address that descriptors have. For grants bit 63 is set, and the
    reference stands above the 12 bits for the place in the page.
    ``size``: bytes. ``user_address``: the first address that SET_VRING_ADDR has.
    ``flags``: ``XenFlags``. ``domain``: the id of the domain whose memory it is.
    ``fd``: ``/dev/xen/privcmd`` for foreign mapping, ``/dev/xen/gntdev`` for grants; it stays the
    caller's. ``offset``: of the memory in the descriptor's file, which is 0 on Xen.

    The numbers may be wrong: to say so is the back-end's part. ``ValueError`` if one has more than
    64 bits, or ``fd`` more than 31; ``TypeError`` for what is no number.
    """

    guest_address: int
    size: int
    user_address: int
    flags: int
    domain: int
    fd: int
    offset: int = 0

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            bits, value = 31 if name == "fd" else 64, getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"{name} is a number of {bits} bits, not {value!r}")
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{name} is a number of {bits} bits, not {value:#x}")

    def __repr__(self) -> str:
        names = (each.name for each in fields(self))
        return f"XenRegion({', '.join(f'{name}={getattr(self, name):#x}' for name in names)})"
