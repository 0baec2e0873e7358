"""A front-end that has its back-end's writes to guest memory logged, as for a migration.

The log is a bit for each page of 4096 bytes: QEMU "Vhost-user Protocol", "Migration". A log is
never cleared here, which would take an atomic exchange, but replaced: once SET_LOG_BASE is answered
nobody writes to the former one.
"""

import os
from collections.abc import Iterable

from . import wire
from .front_end import WANTED, FrontEnd
from .memory import PAGE, memfd
from .numbers import Feature, ProtocolFeature, Request

LOGGING = int(WANTED | ProtocolFeature.LOG_SHMFD)
"""The protocol features to negotiate."""


class DirtyLog:
    """The log of one connection's guest memory."""

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        end = max(region.guest + region.size for region in front.memory.regions)
        self.bytes = -(-end // PAGE // 64) * 8
        self._fd = -1

    def start(self) -> None:
        """Has writes logged from now on, those to used rings too."""
        self.replace()
        self.front.change(Request.SET_FEATURES, wire.u64(self.front.features | Feature.LOG_ALL))
        for index in self.front.rings:
            self.log_ring(index)

    def log_ring(self, index: int, *, on: bool = True) -> None:
        """Has writes to a used ring logged, or no more."""
        used = self.front.rings[index].places.used
        self.front.change(
            Request.SET_VRING_ADDR, self.front.addresses(index, flags=int(on), log=used)
        )

    def replace(self) -> set[int]:
        """Gives the back-end an empty log; returns the pages that were marked in the former."""
        fd = memfd(self.bytes)
        payload = wire.u64(self.bytes) + wire.u64(0)
        assert self.front.channel.ask(Request.SET_LOG_BASE, payload, [fd]) == payload
        former, self._fd = self._fd, fd
        return self._read(former)

    def marked(self) -> set[int]:
        """The pages that are marked in the present log."""
        return set() if self._fd < 0 else pages_of(os.pread(self._fd, self.bytes, 0))

    def close(self) -> None:
        """Closes the log; the back-end's mapping is its own."""
        if self._fd >= 0:
            os.close(self._fd)

    def _read(self, fd: int) -> set[int]:
        if fd < 0:
            return set()
        pages = pages_of(os.pread(fd, self.bytes, 0))
        os.close(fd)
        return pages


def pages_of(bits: bytes) -> set[int]:
    """The numbers of the pages whose bits are set."""
    return {
        8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1
    }


class Copy:
    """A copy of guest memory elsewhere, page by page."""

    def __init__(self, front: FrontEnd) -> None:
        self.memory = front.memory
        self.pages: dict[int, bytes] = {}
        self.take(range(self._end() // PAGE))

    def take(self, pages: Iterable[int]) -> None:
        """Copies these pages as they are now."""
        for page in pages:
            self.pages[page] = self.memory.read(page * PAGE, PAGE)

    def read(self, guest: int, size: int) -> bytes:
        """Bytes of the copy."""
        first, last = guest // PAGE, (guest + size - 1) // PAGE
        whole = b"".join(self.pages[page] for page in range(first, last + 1))
        return whole[guest - first * PAGE :][:size]

    def changed(self) -> set[int]:
        """The pages that differ by now."""
        return {p for p, data in self.pages.items() if self.memory.read(p * PAGE, PAGE) != data}

    def _end(self) -> int:
        (region,) = self.memory.regions
        assert region.guest == 0
        return region.size
