"""The three designs by which a front-end has told how memory is to be mapped.

| design | carried by | numbers |
|---|---|---|
| merged | each region, 40 bytes | u32 flags, u32 domain |
| review | each region, 48 bytes | u64 flags, u64 domain |
| message | a message of its own, for the regions that follow | u64 flags, u64 domain |

Sources: QEMU "Vhost-user Protocol", "Memory region description"; "[PATCH V2] docs: vhost-user: Add
Xen specific memory mapping support" and the answers to it, March 2023.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import NamedTuple

from peer import wire

FOREIGN, GRANT = 1 << 0, 1 << 1
MORE = 1 << 2
"""Review and message: the back-end may map what no region holds."""

NO_ADVANCE = 1 << 8
NO_ADVANCE_RUST_VMM = 1 << 3
"""Two numbers for one thing, the specification's and rust-vmm's: map when it is needed."""

SET_XEN_MMAP = 41


class Design(Enum):
    """The value is what follows each region."""

    MERGED = "=II"
    REVIEW = "=QQ"
    MESSAGE = ""

    def __str__(self) -> str:
        return self.name.lower()


class Kind(NamedTuple):
    """How to map, and whose memory it is."""

    flags: int
    domain: int

    def message(self) -> bytes:
        """The payload of SET_XEN_MMAP."""
        return struct.pack("=QQ", *self)


class Offer(NamedTuple):
    """One region as the back-end is told of it. ``bus``: the address that the driver uses."""

    bus: int
    size: int
    user: int
    kind: Kind
    offset: int = 0

    def describe(self, design: Design) -> bytes:
        region = wire.region(self.bus, self.size, self.user, self.offset)
        if design is Design.MESSAGE:
            return region
        return region + struct.pack(design.value, *self.kind)

    def holds(self, bus: int) -> bool:
        return self.bus <= bus < self.bus + self.size
