"""The guest's memory as its driver sees it, and as the front-end offers it to the back-end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peer.memory import USER_OFFSET, GuestMemory, Region

from .design import Offer
from .guest import FRAMES, Guest
from .ioctl import PAGE

GRANT_BIT = 1 << 63
FIRST_REFERENCE = 16
PAGES = 256


def bus_of(reference: int, offset: int = 0) -> int:
    """The address by which a driver names a granted page, as Linux's grant DMA does."""
    return GRANT_BIT | reference << 12 | offset


class Window(Region):
    """Frames of the guest that follow one another in the driver's addresses from ``bus`` on."""

    def __init__(self, guest: Guest, frames: Sequence[int], bus: int) -> None:
        self.guest = bus
        self.size = len(frames) * PAGE
        self.offset = 0
        self.user = 0
        self.map = guest.map(frames)
        self.bytes = memoryview(self.map)
        self.bytes[:] = bytes(self.size)  # the guest before left its rings

    def close(self) -> None:
        self.bytes.release()
        self.map.close()


class DomainMemory(GuestMemory):
    """``frames`` of the guest, which follow one another: by frame number, or by grant reference
    from ``FIRST_REFERENCE`` on.

    ``offers`` are the regions of the back-end, which a test sets before the memory is shared.
    """

    def __init__(
        self, guest: Guest, *, by_grant: bool, frames: Sequence[int] = FRAMES[:PAGES]
    ) -> None:
        self.domain = guest
        self.by_grant = by_grant
        self.frames = frames
        bus = bus_of(FIRST_REFERENCE) if by_grant else frames[0] * PAGE
        super().__init__(Window(guest, frames, bus))
        self.offers: list[Offer] = []

    @property
    def start(self) -> int:
        return self.regions[0].guest

    @property
    def end(self) -> int:
        return self.start + self.regions[0].size

    def user(self, guest: int) -> int:
        """The address for SET_VRING_ADDR: the driver's own where the region has no other."""
        for offer in self.offers:
            if offer.holds(guest):
                return guest - offer.bus + offer.user if offer.user else guest
        return guest

    def references(self, bus: int, size: int) -> range:
        """The references of the pages that hold ``size`` bytes at ``bus``."""
        first = (bus - self.start) // PAGE
        last = (bus - self.start + size - 1) // PAGE
        return range(FIRST_REFERENCE + first, FIRST_REFERENCE + last + 1)

    def grant(self, bus: int, size: int, *, read_only: bool = False) -> range:
        """Grant the pages that hold ``size`` bytes at ``bus``; gives their references."""
        references = self.references(bus, size)
        for reference in references:
            frame = self.frames[reference - FIRST_REFERENCE]
            self.domain.grants.grant(reference, frame, read_only=read_only)
        return references

    @contextmanager
    def granted(self, bus: int, size: int) -> Iterator[range]:
        """``grant``, revoked at the end, by when nothing may be mapped any more."""
        references = self.grant(bus, size)
        yield references
        self.domain.grants.revoke(*references)


def apart(bus: int) -> int:
    """A user address for ``bus`` that cannot be taken for it."""
    return (bus & ~GRANT_BIT) + USER_OFFSET
