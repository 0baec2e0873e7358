"""The ways in which front-ends offer a guest's memory.

Each takes the memory and the places of its rings, and gives the regions. ``domain`` is the guest's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

from peer.ring import Ring

from .design import FOREIGN, GRANT, MORE, Kind, Offer
from .ioctl import PAGE
from .memory import DomainMemory, apart

Make = Callable[[DomainMemory, Iterable[Ring], int], list[Offer]]


class Layout(NamedTuple):
    """A way to offer memory. ``flags`` are those of the regions that hold buffers."""

    name: str
    flags: int
    make: Make

    def __str__(self) -> str:
        return self.name

    @property
    def by_grant(self) -> bool:
        return not self.flags & FOREIGN

    @property
    def on_demand(self) -> bool:
        """Whether pages are granted for one request and taken back after it."""
        return self.by_grant and self.flags != GRANT


def whole(memory: DomainMemory, _: Iterable[Ring], flags: int) -> list[Offer]:
    """One region, with user addresses of its own."""
    kind = Kind(flags, memory.domain.domain)
    return [Offer(memory.start, memory.end - memory.start, apart(memory.start), kind)]


def whole_by_guest_address(memory: DomainMemory, _: Iterable[Ring], flags: int) -> list[Offer]:
    """One region whose user addresses are the guest's own, as QEMU's series of 2026 has it."""
    kind = Kind(flags, memory.domain.domain)
    return [Offer(memory.start, memory.end - memory.start, memory.start, kind)]


def whole_without_user_address(memory: DomainMemory, _: Iterable[Ring], flags: int) -> list[Offer]:
    """One region with the user address 0: the rings are found by the driver's addresses."""
    kind = Kind(flags, memory.domain.domain)
    return [Offer(memory.start, memory.end - memory.start, 0, kind)]


def rings_alone(memory: DomainMemory, rings: Iterable[Ring], flags: int) -> list[Offer]:
    """A region for each part of each ring, of its exact size; no region holds the buffers."""
    return _ring_parts(memory, rings, flags)


def rings_and_the_rest(memory: DomainMemory, rings: Iterable[Ring], flags: int) -> list[Offer]:
    """As xen-vhost-frontend does it: the parts of the rings mapped in advance, by exact size, and
    regions with the user address 0 for all that lies between, sorted by address."""
    parts = sorted(_ring_parts(memory, rings, GRANT), key=lambda offer: offer.bus)
    ends = [memory.start, *(_page_up(part.bus + part.size) for part in parts)]
    starts = [*(part.bus // PAGE * PAGE for part in parts), memory.end]
    kind = Kind(flags, memory.domain.domain)
    gaps = zip(ends, starts, strict=True)
    rest = [Offer(start, end - start, 0, kind) for start, end in gaps if end > start]
    return sorted([*parts, *rest], key=lambda offer: offer.bus)


def inside_pages(memory: DomainMemory, rings: Iterable[Ring], flags: int) -> list[Offer]:
    """The parts of the rings by exact size, several in a page, and the buffers behind them: most
    regions start inside a page."""
    parts = sorted(_ring_parts(memory, rings, flags), key=lambda offer: offer.bus)
    for this, following in pairwise(parts):
        assert this.bus + this.size <= following.bus
    start = parts[-1].bus + parts[-1].size
    rest = Offer(start, memory.end - start, apart(start), Kind(flags, memory.domain.domain))
    return [*parts, rest]


def halves(memory: DomainMemory, _: Iterable[Ring], flags: int) -> list[Offer]:
    """Two regions of one size. The rings lie in the first."""
    size = (memory.end - memory.start) // 2
    kind = Kind(flags, memory.domain.domain)
    starts = (memory.start, memory.start + size)
    return [Offer(start, size, apart(start), kind) for start in starts]


def _ring_parts(memory: DomainMemory, rings: Iterable[Ring], flags: int) -> list[Offer]:
    kind = Kind(flags, memory.domain.domain)
    offers = []
    for ring in rings:
        for bus, size in zip(ring.places, ring.part_bytes(ring.size), strict=True):
            offers.append(Offer(bus, size, apart(bus), kind))
    return offers


def _page_up(address: int) -> int:
    return -(-address // PAGE) * PAGE


FOREIGN_LAYOUT = Layout("foreign", FOREIGN, whole)
FOREIGN_BY_GUEST_ADDRESS = Layout("foreign-by-guest-address", FOREIGN, whole_by_guest_address)
IN_ADVANCE = Layout("in-advance", GRANT, whole)
HALVES_IN_ADVANCE = Layout("halves-in-advance", GRANT, halves)
FOREIGN_INSIDE_PAGES = Layout("foreign-inside-pages", FOREIGN, inside_pages)
IN_ADVANCE_INSIDE_PAGES = Layout("in-advance-inside-pages", GRANT, inside_pages)
MORE_THAN_REGIONS = Layout("more-than-regions", GRANT | MORE, rings_alone)


def on_demand(no_advance: int) -> Layout:
    """Rings in advance, buffers on demand."""
    return Layout(f"on-demand-{no_advance:#x}", GRANT | no_advance, rings_and_the_rest)


def all_on_demand(no_advance: int) -> Layout:
    """The rings, too, in a region that is not to be mapped in advance."""
    return Layout(f"all-on-demand-{no_advance:#x}", GRANT | no_advance, whole_without_user_address)
