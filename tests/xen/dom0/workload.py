"""Thousands of block requests over one ring, checked byte for byte against a model of the disk.

Each request in flight has pages of its own and a stretch of the disk of its own, so that requests
may end in any order. Where the layout is on demand its pages are granted for this one request, as
Linux does it: what the device only reads is granted for reading alone. When the request is seen in
the used ring none of them may be mapped any more, and the grants end.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from peer.blk import CANARY, HEADER, SECTOR, Status, Type
from peer.numbers import Feature
from peer.ring import Ring, Segment

from .backend import DISK_BYTES
from .front_end import XenFrontEnd
from .ioctl import PAGE
from .memory import DomainMemory

DEPTH = 16
DATA_OFFSET = 0x200
DATA_PAGES = 5


class Slot(NamedTuple):
    """The pages of one request: one to be read from, one to be written to, and the data."""

    number: int
    readable: int
    status: int
    data: int

    @classmethod
    def allocate(cls, memory: DomainMemory, number: int, data_pages: int) -> Slot:
        readable = memory.allocate(PAGE, PAGE) + 0x40
        status = memory.allocate(PAGE, PAGE) + 0xFFF
        return cls(number, readable, status, memory.allocate(data_pages * PAGE, PAGE) + DATA_OFFSET)


class Job(NamedTuple):
    """What a slot is to do: read, or write ``data``, at a place on the disk."""

    offset: int
    length: int
    data: bytes | None
    indirect: bool


class Workload:
    """Rounds of ``depth`` requests; ``content`` is what the disk must hold.

    A request has at most ``data_pages`` of data. ``in_tables`` is the share of chains that lie in
    indirect tables. ``ring`` is the one that they go through.
    """

    def __init__(
        self,
        front: XenFrontEnd,
        content: bytes,
        *,
        depth: int = DEPTH,
        data_pages: int = DATA_PAGES,
        in_tables: float = 0.5,
        ring: int = 0,
    ) -> None:
        self.front = front
        self.memory = front.domain_memory
        self.ring: Ring = front.ring(ring)
        self.content = bytearray(content)
        self.slots = [Slot.allocate(self.memory, number, data_pages) for number in range(depth)]
        self.done = 0
        self._stretch = DISK_BYTES // depth
        self._most_sectors = (data_pages * PAGE - DATA_OFFSET) // SECTOR
        self._in_tables = in_tables
        self._random = random.Random(1)

    def run(self, requests: int) -> None:
        """At least ``requests`` of them; ``AssertionError`` at the first wrong byte."""
        while self.done < requests:
            self.submit()
            self.finish()

    def submit(self) -> None:
        """Make a round available and kick."""
        self._jobs = {}
        self._granted: dict[int, list[int]] = {}
        for slot in self.slots:
            job = self._job(slot)
            head = self._lay(slot, job)
            self._jobs[head] = (slot, job)
            self._granted[head] = self._grant(slot, job)
        self.ring.offer(*self._jobs)
        self.ring.kick()

    def finish(self) -> None:
        """Wait for the round and check all of it; the order too, if one was negotiated."""
        offered, answers = list(self._jobs), self.ring.wait(len(self.slots))
        if self.front.features & Feature.IN_ORDER:
            assert [used.head for used in answers] == offered
        for used in answers:
            slot, job = self._jobs.pop(used.head)
            self.memory.domain.grants.revoke(*self._granted.pop(used.head))
            self._check(slot, job, used.length)
            self.done += 1

    def flush(self) -> None:
        """A flush, alone."""
        slot = self.slots[0]
        self.memory.write(slot.readable, HEADER.pack(Type.FLUSH, 0, 0))
        chain = [Segment(slot.readable, HEADER.size), Segment(slot.status, 1, True)]
        assert self.one(slot, chain) == Status.OK

    def one(self, slot: Slot, chain: list[Segment]) -> int:
        """Run one request alone, as it lies in memory, and give its status."""
        self.memory.write(slot.status, bytes([CANARY]))
        granted = self._grant(slot, Job(0, 0, b"", False))
        self.ring.add(chain)
        self.ring.kick()
        self.ring.wait()
        self.memory.domain.grants.revoke(*granted)
        return self.memory.read(slot.status, 1)[0]

    def _job(self, slot: Slot) -> Job:
        chance = self._random
        length = chance.randint(1, self._most_sectors) * SECTOR
        place = chance.randrange((self._stretch - length) // SECTOR) * SECTOR
        data = chance.randbytes(length) if chance.random() < 0.5 else None
        indirect = chance.random() < self._in_tables
        return Job(slot.number * self._stretch + place, length, data, indirect)

    def _lay(self, slot: Slot, job: Job) -> int:
        kind = Type.IN if job.data is None else Type.OUT
        self.memory.write(slot.readable, HEADER.pack(kind, 0, job.offset // SECTOR))
        self.memory.write(slot.data, job.data or bytes([CANARY]) * job.length)
        self.memory.write(slot.status, bytes([CANARY]))
        chain = [Segment(slot.readable, HEADER.size)]
        cut = min(job.length, 3 * SECTOR)
        chain.append(Segment(slot.data, cut, job.data is None))
        if job.length > cut:
            chain.append(Segment(slot.data + cut, job.length - cut, job.data is None))
        chain.append(Segment(slot.status, 1, True))
        if not job.indirect:
            return self.ring.lay(chain)
        return self.ring.lay_indirect(slot.readable + HEADER.size, chain)

    def _grant(self, slot: Slot, job: Job) -> list[int]:
        if not self.front.layout.on_demand:
            return []
        grant = self.memory.grant
        return [
            *grant(slot.readable, 1, read_only=True),
            *grant(slot.status, 1),
            *grant(slot.data, job.length, read_only=job.data is not None),
        ]

    def _check(self, slot: Slot, job: Job, used: int) -> None:
        what = f"request {self.done}: {job.offset=} {job.length=} {job.indirect=}"
        assert self.memory.read(slot.status, 1)[0] == Status.OK, what
        place = slice(job.offset, job.offset + job.length)
        if job.data is None:
            assert used == job.length + 1, what
            assert self.memory.read(slot.data, job.length) == self.content[place], what
        else:
            assert used == 1, what
            self.content[place] = job.data
