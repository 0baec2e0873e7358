"""Guest memory: regions over memfds, addressed by guest address.

The front-end's own addresses need not be real: they only have to be consistent between the
memory table and SET_VRING_ADDR. They are set apart from the guest's so that a mix-up shows.
"""

import mmap
import os
from collections.abc import Sequence

from . import wire

PAGE = mmap.PAGESIZE
USER_OFFSET = 0x7000_0000_0000
NAME = "peer-guest"
"""The memfds' name, by which a mapping of guest memory is known in /proc/PID/maps."""


def memfd(size: int, *, huge: bool = False) -> int:
    """A fresh memfd of `size` bytes, of huge pages if they are wanted; the caller closes it."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | (os.MFD_HUGETLB if huge else 0))
    os.ftruncate(fd, size)
    return fd


class Region:
    """One region: a memfd, mapped here whole and described to the back-end."""

    def __init__(
        self,
        guest: int,
        size: int,
        *,
        offset: int = 0,
        user: int | None = None,
        huge: bool = False,
    ) -> None:
        self.guest = guest
        self.size = size
        self.offset = offset
        self.user = guest + USER_OFFSET if user is None else user
        self.fd = memfd(-(-(offset + size) // PAGE) * PAGE, huge=huge)
        self.map = mmap.mmap(self.fd, 0)
        self.bytes = memoryview(self.map)[offset : offset + size]

    def describe(self) -> bytes:
        """The region as it stands in a message."""
        return wire.region(self.guest, self.size, self.user, self.offset)

    def close(self) -> None:
        """Unmaps and closes; the back-end's mapping is its own."""
        self.bytes.release()
        self.map.close()
        os.close(self.fd)


class GuestMemory:
    """A guest's regions, and a bump allocator over the first of them."""

    def __init__(self, *regions: Region) -> None:
        self.regions = list(regions) or [Region(0, 16 << 20)]
        self._next = self.regions[0].guest + PAGE  # guest address 0 stays unused
        self._end = self.regions[0].guest + self.regions[0].size

    def table(self) -> bytes:
        """The payload of SET_MEM_TABLE."""
        return wire.memory_table([region.describe() for region in self.regions])

    @property
    def fds(self) -> list[int]:
        """One descriptor a region, in the table's order."""
        return [region.fd for region in self.regions]

    def allocate(self, size: int, align: int = 16) -> int:
        """A guest address with `size` zeroed bytes that nothing else uses."""
        start = -(-self._next // align) * align
        if start + size > self._end:
            raise MemoryError(f"guest memory is full: {size} bytes wanted")
        self._next = start + size
        return start

    def user(self, guest: int) -> int:
        """The front-end address of a guest address."""
        region = self._find(guest, 0)
        return region.user + (guest - region.guest)

    def view(self, guest: int, size: int) -> memoryview:
        """The bytes at a guest address, within one region."""
        region = self._find(guest, size)
        start = guest - region.guest
        return region.bytes[start : start + size]

    def read(self, guest: int, size: int) -> bytes:
        """A copy of the bytes at a guest address, across adjacent regions."""
        return b"".join(bytes(self.view(at, part)) for at, part in self._parts(guest, size))

    def write(self, guest: int, data: bytes) -> None:
        """Stores bytes at a guest address, across adjacent regions."""
        done = 0
        for at, part in self._parts(guest, len(data)):
            self.view(at, part)[:] = data[done : done + part]
            done += part

    def close(self) -> None:
        """Unmaps and closes all regions."""
        for region in self.regions:
            region.close()

    def _parts(self, guest: int, size: int) -> Sequence[tuple[int, int]]:
        parts = []
        while size:
            region = self._find(guest, 1)
            part = min(size, region.guest + region.size - guest)
            parts.append((guest, part))
            guest, size = guest + part, size - part
        return parts

    def _find(self, guest: int, size: int) -> Region:
        for region in self.regions:
            if region.guest <= guest and guest + size <= region.guest + region.size:
                return region
        raise IndexError(f"no region holds {size} bytes at {guest:#x}")
