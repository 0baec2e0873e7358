"""The driver's side of a split virtqueue, with every field within a test's reach.

Source: VIRTIO 1.3, "Split Virtqueues". `SplitRing` behaves; a test that wants to misbehave writes
descriptors, slots and indexes through the same methods that the good driver uses.

Indexes are stored through views cast to 16 bits, which CPython writes with one store; the
hardware barrier between an index and what follows comes from the system call of each kick.
"""

import os
import select
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .memory import GuestMemory
from .patience import PATIENCE

NEXT, WRITE, INDIRECT = 1, 2, 4
DESCRIPTOR = struct.Struct("<QIHH")
USED = struct.Struct("<II")


class Segment(NamedTuple):
    """One buffer of a chain."""

    address: int
    length: int
    writable: bool = False


class Used(NamedTuple):
    """One entry of the used ring."""

    head: int
    length: int


class Timeout(AssertionError):
    """The device did not answer in time."""


class Places(NamedTuple):
    """Guest addresses of a ring's three parts."""

    descriptors: int
    available: int
    used: int

    @classmethod
    def allocate(cls, memory: GuestMemory, size: int) -> "Places":
        """Fresh places, each aligned as the standard demands and no better."""
        return cls(
            memory.allocate(16 * size, 16),
            memory.allocate(6 + 2 * size, 2),
            memory.allocate(6 + 8 * size, 4),
        )


class Ring(ABC):
    """What rings of both formats have: a place in memory, three event descriptors, and chains that
    come and go."""

    START_BASE = 0
    """What SET_VRING_BASE says of a new ring."""
    DEVICE_WRITES = (False, False, True)
    """Which of its parts the device writes."""

    def __init__(self, memory: GuestMemory, size: int, places: Places) -> None:
        self.memory = memory
        self.size = size
        self.places = places
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @staticmethod
    @abstractmethod
    def part_bytes(size: int) -> tuple[int, int, int]:
        """The bytes of each part of a ring of `size` entries."""

    @abstractmethod
    def add(self, segments: Sequence[Segment]) -> int:
        """Makes one chain available without a kick; gives the name by which it comes back."""

    @abstractmethod
    def lay(self, segments: Sequence[Segment]) -> int:
        """Writes one chain, and does not offer it; gives its name."""

    @abstractmethod
    def lay_indirect(self, table: int, segments: Sequence[Segment]) -> int:
        """Writes one chain through an indirect table at `table`; gives its name."""

    @abstractmethod
    def offer(self, *names: int) -> None:
        """Shows the device all chains that were laid since the last call, in this order."""

    @abstractmethod
    def wait(self, count: int = 1, seconds: float = PATIENCE) -> list[Used]:
        """Waits, from call to call, until `count` more chains are used; takes them back."""

    def kick(self) -> None:
        """Tells the device to look."""
        os.eventfd_write(self.kick_fd, 1)

    def is_broken(self, seconds: float = PATIENCE) -> bool:
        """Waits for the device to signal the error descriptor."""
        return signalled(self.error_fd, seconds)

    def close(self) -> None:
        """Closes the event descriptors."""
        for fd in (self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)


class SplitRing(Ring):
    """One virtqueue, the driver's side: `size` entries at `places`."""

    def __init__(self, memory: GuestMemory, size: int, places: Places | None = None) -> None:
        super().__init__(memory, size, places or Places.allocate(memory, size))
        self._available = memory.view(self.places.available, 6 + 2 * size).cast("H")
        self._used = memory.view(self.places.used, 6 + 8 * size)
        self._used_index = self._used[2:4].cast("H")
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self.seen = self.used_index

    @staticmethod
    def part_bytes(size: int) -> tuple[int, int, int]:
        """The descriptor table, the available ring and the used ring."""
        return 16 * size, 6 + 2 * size, 6 + 8 * size

    # Fields of the ring.

    def set_descriptor(
        self, index: int, address: int, length: int, flags: int, next_: int = 0
    ) -> None:
        """Writes one entry of the descriptor table."""
        where = self.places.descriptors + 16 * index
        self.memory.write(where, DESCRIPTOR.pack(address, length, flags, next_))

    def set_slot(self, position: int, head: int) -> None:
        """Writes one slot of the available ring; `position` is free-running."""
        self._available[2 + position % self.size] = head

    @property
    def available_flags(self) -> int:
        """`avail.flags`."""
        return self._available[0]

    @available_flags.setter
    def available_flags(self, value: int) -> None:
        self._available[0] = value

    @property
    def available_index(self) -> int:
        """`avail.idx`, free-running."""
        return self._available[1]

    @available_index.setter
    def available_index(self, value: int) -> None:
        self._available[1] = value & 0xFFFF

    @property
    def used_event(self) -> int:
        """`used_event`: the driver wants a call once `used.idx` has passed it."""
        return self._available[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._available[2 + self.size] = value & 0xFFFF

    @property
    def used_index(self) -> int:
        """`used.idx`, free-running."""
        return self._used_index[0]

    @property
    def used_flags(self) -> int:
        """`used.flags`."""
        return int.from_bytes(self._used[0:2], "little")

    @property
    def available_event(self) -> int:
        """`avail_event`: the device wants a kick once `avail.idx` has passed it."""
        return int.from_bytes(self._used[4 + 8 * self.size :][:2], "little")

    def used_entry(self, position: int) -> Used:
        """One entry of the used ring; `position` is free-running."""
        return Used(*USED.unpack_from(self._used, 4 + 8 * (position % self.size)))

    # The well-behaved driver.

    def add(self, segments: Sequence[Segment]) -> int:
        """Makes one chain available without a kick; gives its head."""
        head = self.lay(segments)
        self.offer(head)
        return head

    def lay(self, segments: Sequence[Segment]) -> int:
        """Writes one chain into free descriptors; gives its head."""
        indexes = [self._free.pop(0) for _ in segments]
        for place, (index, segment) in enumerate(zip(indexes, segments, strict=True)):
            last = place == len(indexes) - 1
            flags = (WRITE if segment.writable else 0) | (0 if last else NEXT)
            following = 0 if last else indexes[place + 1]
            self.set_descriptor(index, segment.address, segment.length, flags, following)
        self._chains[indexes[0]] = indexes
        return indexes[0]

    def add_indirect(self, segments: Sequence[Segment], extra_flags: int = 0) -> int:
        """Makes one chain available through an indirect table; gives its head."""
        head = self.lay_indirect(self.memory.allocate(16 * len(segments)), segments, extra_flags)
        self.offer(head)
        return head

    def lay_indirect(self, table: int, segments: Sequence[Segment], extra_flags: int = 0) -> int:
        """Writes one chain through an indirect table at `table`; gives its head."""
        self.write_table(table, segments)
        head = self._free.pop(0)
        self.set_descriptor(head, table, 16 * len(segments), INDIRECT | extra_flags)
        self._chains[head] = [head]
        return head

    def write_table(self, table: int, segments: Sequence[Segment]) -> None:
        """Writes an indirect table."""
        entries = b""
        for place, segment in enumerate(segments):
            last = place == len(segments) - 1
            flags = (WRITE if segment.writable else 0) | (0 if last else NEXT)
            entries += DESCRIPTOR.pack(
                segment.address, segment.length, flags, 0 if last else place + 1
            )
        self.memory.write(table, entries)

    def offer(self, *names: int) -> None:
        """Puts heads into the available ring and publishes them with one store."""
        index = self.available_index
        for place, head in enumerate(names):
            self.set_slot(index + place, head)
        self.available_index = index + len(names)

    def wait(self, count: int = 1, seconds: float = PATIENCE) -> list[Used]:
        """Waits, from call to call, until `count` more chains are used; takes them back."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.call_fd, select.POLLIN)
        while (self.used_index - self.seen) & 0xFFFF < count:
            left = max(0.0, deadline - time.monotonic())
            if not poll.poll(left * 1000):
                done = (self.used_index - self.seen) & 0xFFFF
                raise Timeout(f"no call within {seconds} s; {done} of {count} chains are used")
            drain(self.call_fd)
        return self.take(count)

    def take(self, count: int) -> list[Used]:
        """Takes `count` used entries back and frees their descriptors."""
        entries = []
        for _ in range(count):
            entry = self.used_entry(self.seen)
            self._free.extend(self._chains.pop(entry.head, []))
            entries.append(entry)
            self.seen = (self.seen + 1) & 0xFFFF
        return entries

    def reset(self) -> None:
        """Sets both indexes to 0, for a ring that is stopped."""
        self.available_index = self.seen = self._used_index[0] = 0
        self._free = list(range(self.size))
        self._chains.clear()

    def close(self) -> None:
        """Closes the event descriptors and lets go of the memory."""
        super().close()
        for view in (self._available, self._used_index, self._used):
            view.release()


def drain(fd: int) -> int:
    """Takes an eventfd's count; 0 when nothing was written to it."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def signalled(fd: int, seconds: float) -> bool:
    """Waits until an eventfd was written to, and takes its count."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000)) and drain(fd) > 0


def chain(*parts: Segment | Iterable[Segment]) -> list[Segment]:
    """Flattens segments and lists of segments into one chain."""
    flat: list[Segment] = []
    for part in parts:
        flat.extend([part] if isinstance(part, Segment) else part)
    return flat
