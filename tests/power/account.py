"""A driver that keeps account of what it was promised, and holds a disk to it."""

import random
from typing import NamedTuple

from peer.blk import CANARY, SECTOR, Request, Status, Type, segment_range
from peer.front_end import FrontEnd

from .disk import SIZE
from .disk_server import State

PAGE = 4096
PATIENCE = 60.0
"""Seconds for an answer: a machine may be busy, and a disk that hangs is seen all the same."""


class Slot(NamedTuple):
    """A part of the disk that is always written as a whole."""

    sector: int
    sectors: int

    def content(self, version: int) -> bytes:
        """What is written to it the so-manieth time; each third time, zeroes."""
        length = self.sectors * SECTOR
        if version % 3 == 0:
            return bytes(length)
        return random.Random(f"{self.sector} {version}").randbytes(length)


SLOTS = [
    # Whole pages, and such that share theirs with others.
    *(Slot(8 * n, 8) for n in range(4)),
    *(Slot(64 + 3 * n, 3) for n in range(4)),
    *(Slot(96 + n, 1) for n in range(3)),
    Slot(128, 32),
    Slot(256, 200),
    Slot(SIZE // SECTOR - 1, 1),
]


class LostError(AssertionError):
    """A power cut may leave what the driver was told is gone."""


class Account:
    """Which versions of each slot a power cut may leave: from `sure` to `begun`."""

    def __init__(self) -> None:
        self.begun = [0] * len(SLOTS)
        self.done = [0] * len(SLOTS)
        self.sure = [0] * len(SLOTS)

    def keep(self, done: list[int]) -> None:
        """These versions are on stable storage, as the device says."""
        self.sure = [max(pair) for pair in zip(self.sure, done, strict=True)]

    def check(self, state: State) -> int:
        """Raises `LostError` if a power cut could leave a sector that the account has no room for.
        Gives the number of sectors whose content a cut leaves to chance.
        """
        undecided = 0
        for slot, sure, begun in zip(SLOTS, self.sure, self.begun, strict=True):
            allowed = [slot.content(version) for version in range(sure, begun + 1)]
            for n in range(slot.sectors):
                left = versions(state, slot.sector + n)
                undecided += len(left) > 1
                right = {content[n * SECTOR :][:SECTOR] for content in allowed}
                if not left <= right:
                    raise LostError(
                        f"sector {n} of {slot} may be left with something else than what was "
                        f"written from version {sure} to {begun}"
                    )
        return undecided


def versions(state: State, sector: int) -> set[bytes]:
    """All that a power cut may leave in a sector."""
    start, end = sector * SECTOR, (sector + 1) * SECTOR
    later = {
        data[start - at : end - at]
        for at, data in state.volatile
        if at <= start and end <= at + len(data)
    }
    torn = [at for at, data in state.volatile if (at | len(data)) % SECTOR]
    assert not torn, "a write of parts of sectors"
    return {state.stable[start:end]} | later


class Driver:
    """Has writes in flight all the time on the first ring, and flushes now and then on the last."""

    def __init__(self, front: FrontEnd, seed: int, *, flushes: bool = True) -> None:
        self.front = front
        self.account = Account()
        self.through = not flushes
        """Each write is on stable storage when it is answered."""
        self._chance = random.Random(seed)
        self._flushes = flushes
        self._last = len(front.rings) - 1
        self._writes = [self._prepare(slot) for slot in SLOTS]
        self._zeroes = [self._prepare_zeroes(slot) for slot in SLOTS]
        self._flush = front.blk().prepare(Type.FLUSH, 0)
        self._writing: dict[int, int] = {}
        self._flushing: dict[int, list[int]] = {}

    def _prepare(self, slot: Slot) -> Request:
        length = slot.sectors * SECTOR
        # Whole sectors lie in a page, so that the kernel divides no sector between two calls. Some
        # are where direct I/O takes them and others are not.
        data = self.front.memory.allocate(length, (SECTOR, PAGE)[slot.sectors % 16 == 0])
        request = self.front.blk().prepare(Type.OUT, slot.sector)
        return request._replace(data=data, length=length)

    def _prepare_zeroes(self, slot: Slot) -> Request:
        unmap = slot.sector % 2
        wanted = segment_range(slot.sector, slot.sectors, unmap)
        return self.front.blk().prepare(Type.WRITE_ZEROES, 0, wanted)

    def submit(self) -> None:
        """Writes to some of the slots, and perhaps flushes."""
        idle = set(range(len(SLOTS))) - set(self._writing.values())
        for slot in self._chance.sample(sorted(idle), self._chance.randint(0, len(idle))):
            self._write(slot)
        if self._flushes and not self._flushing and self._chance.random() < 0.5:
            self._flushing[self._start(self._flush, self._last)] = list(self.account.done)
        self.front.rings[0].kick()
        self.front.rings[self._last].kick()

    def _write(self, slot: int) -> None:
        self.account.begun[slot] += 1
        content = SLOTS[slot].content(self.account.begun[slot])
        request = self._zeroes[slot] if not any(content) else self._writes[slot]
        if any(content):
            self.front.memory.write(request.data, content)
        self._writing[self._start(request)] = slot

    def _start(self, request: Request, ring: int = 0) -> int:
        self.front.memory.write(request.status, bytes([CANARY]))
        return self.front.blk(ring).submit(request)

    def take(self, count: int) -> None:
        """Waits for so many answers of the first ring, and takes to account what they promise."""
        for used in self.front.rings[0].wait(count, PATIENCE):
            if used.head in self._flushing and self._last == 0:
                self._flushed(used.head)
            else:
                self._written(used.head)

    def _take_flush(self) -> None:
        (used,) = self.front.rings[self._last].wait(1, PATIENCE)
        self._flushed(used.head)

    def _flushed(self, head: int) -> None:
        self._expect_ok(self._flush)
        self.account.keep(self._flushing.pop(head))

    def _written(self, head: int) -> None:
        slot = self._writing.pop(head)
        version = self.account.begun[slot]
        zeroes = not any(SLOTS[slot].content(version))
        self._expect_ok(self._zeroes[slot] if zeroes else self._writes[slot])
        self.account.done[slot] = version
        if self.through:
            self.account.sure[slot] = version

    def _expect_ok(self, request: Request) -> None:
        status = self.front.memory.read(request.status, 1)[0]
        assert status == Status.OK, f"a request ended with {status:#x}"

    def go_on(self, front: FrontEnd) -> None:
        """Has a new connection with the same memory and rings."""
        self.front = front

    def turn(self) -> None:
        """Has something in flight, and takes some of what comes back."""
        self.submit()
        if self._in_flight:
            self.take(self._chance.randint(1, self._in_flight))
        if self._flushing and self._last and self._chance.random() < 0.5:
            self._take_flush()

    def finish(self) -> None:
        """Takes all that is in flight."""
        if self._in_flight:
            self.take(self._in_flight)
        if self._flushing:
            self._take_flush()

    @property
    def _in_flight(self) -> int:
        """Requests on the first ring that are not answered."""
        return len(self._writing) + (0 if self._last else len(self._flushing))
