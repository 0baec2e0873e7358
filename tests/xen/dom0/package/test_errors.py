"""What a guest may get wrong, provoked for real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peer.blk import CANARY, HEADER, SECTOR, Status, Type
from peer.ring import Segment, Used

from ..backend import BackendProcess
from ..calls import GrantCalls
from ..design import NO_ADVANCE
from ..front_end import XenFrontEnd
from ..guest import Guest
from ..ioctl import PAGE
from ..layout import (
    HALVES_IN_ADVANCE,
    Layout,
    all_on_demand,
    on_demand,
)
from ..workload import Slot, Workload
from .conftest import Connect

ON_DEMAND = on_demand(NO_ADVANCE)
LENGTH = 2 * SECTOR
"""Less would be copied, also where all is mapped that can be."""


@pytest.fixture(autouse=True)
def the_back_end_lives(backend: BackendProcess) -> Iterator[None]:
    """After each test; and the same process serves the next front-end."""
    yield
    assert backend.process.poll() is None, backend.log()


def a_write(work: Workload, slot: Slot, data: int, *, header: int = 0) -> list[Segment]:
    """A write of ``LENGTH`` bytes at the disk's start."""
    work.memory.write(slot.readable, HEADER.pack(Type.OUT, 0, 0))
    return [
        Segment(header or slot.readable, HEADER.size),
        Segment(data, LENGTH),
        Segment(slot.status, 1, True),
    ]


def a_read(work: Workload, slot: Slot, data: int) -> list[Segment]:
    """A read of ``LENGTH`` bytes from the disk's start."""
    work.memory.write(slot.readable, HEADER.pack(Type.IN, 0, 0))
    return [
        Segment(slot.readable, HEADER.size),
        Segment(data, LENGTH, True),
        Segment(slot.status, 1, True),
    ]


@pytest.fixture(params=["file", "map"])
def work(
    backend: BackendProcess, connect: Connect, request: pytest.FixtureRequest
) -> Iterator[Workload]:
    """A running ring whose buffers are granted one by one, and copied or mapped."""
    image = backend.image(request.param)
    with connect(ON_DEMAND, socket=request.param) as front:
        made = Workload(front.start(), image.read_bytes())
        yield made
        made.run(made.done + 16)  # the ring lives, and the disk holds what it did
        made.flush()
        assert image.read_bytes() == made.content


def test_a_buffer_that_was_never_granted_fails_its_request(work: Workload) -> None:
    slot = work.slots[0]
    bus = work.slots[1].data
    assert work.one(slot, a_write(work, slot, bus)) == Status.IOERR
    assert work.one(slot, a_read(work, slot, bus)) == Status.IOERR


def test_a_buffer_whose_grant_was_revoked_fails_its_request(work: Workload) -> None:
    slot, bus = work.slots[0], work.slots[1].data
    with work.memory.granted(bus, LENGTH):
        assert work.one(slot, a_read(work, slot, bus)) == Status.OK
    assert work.one(slot, a_read(work, slot, bus)) == Status.IOERR


def test_a_map_call_that_fails_leaves_nothing_in_the_open_file(
    backend: BackendProcess, connect: Connect
) -> None:
    """The kernel lists the references of each call, and keeps the list until it is given up."""
    with connect(ON_DEMAND, socket="map") as front:
        work = Workload(front.start(), backend.image("map").read_bytes())
        slot, bus = work.slots[0], work.slots[1].data
        with GrantCalls(backend.process.pid) as calls:
            assert work.one(slot, a_read(work, slot, bus)) == Status.IOERR
        assert calls.counts["map"] == calls.counts["unmap"] > 0
        assert calls.counts["release"] == 0, "nothing was mapped"


def test_a_read_only_buffer_is_not_written_to(work: Workload) -> None:
    slot, bus = work.slots[0], work.slots[1].data
    references = work.memory.grant(bus, LENGTH, read_only=True)
    work.memory.write(bus, bytes(LENGTH))
    assert work.one(slot, a_read(work, slot, bus)) == Status.IOERR
    assert work.memory.read(bus, LENGTH) == bytes(LENGTH)
    work.memory.domain.grants.revoke(*references)


@pytest.mark.parametrize("socket", ["file", "ram"])
def test_a_region_of_read_only_grants_is_read_and_never_written(
    backend: BackendProcess, connect: Connect, socket: str
) -> None:
    """Neither by a system call nor by a store, of data or of the status."""
    with connect(HALVES_IN_ADVANCE, socket=socket) as front:
        memory = front.domain_memory
        middle = (memory.start + memory.end) // 2
        memory.grant(middle, memory.end - middle, read_only=True)
        content = backend.image("file").read_bytes() if socket == "file" else backend.content
        work = Workload(front.start(), content)
        slot = work.slots[0]
        memory.write(middle, b"r" * LENGTH)
        assert work.one(slot, a_write(work, slot, middle)) == Status.OK
        assert work.one(slot, a_read(work, slot, middle)) == Status.IOERR
        work.content[:LENGTH] = b"r" * LENGTH
        header, data, _ = a_read(work, slot, slot.data)
        assert work.one(slot, [header, data, Segment(middle, 1, True)]) == CANARY
        assert memory.read(middle, LENGTH) == b"r" * LENGTH
        work.run(16)
        work.flush()
        assert socket == "ram" or backend.image("file").read_bytes() == work.content


def test_a_header_that_was_never_granted_fails_its_request(work: Workload) -> None:
    slot, other = work.slots[0], work.slots[1]
    with work.memory.granted(slot.data, LENGTH):
        chain = a_write(work, slot, slot.data, header=other.readable)
        assert work.one(slot, chain) == Status.IOERR


@pytest.mark.parametrize(
    ("socket", "times", "status"),
    [("map", 40, Status.OK), ("map", 200, Status.IOERR), ("file", 200, Status.OK)],
    ids=["mapped-40", "mapped-200", "copied-200"],
)
def test_a_page_that_is_named_more_often_than_it_can_be_mapped_fails_its_request(
    backend: BackendProcess, connect: Connect, socket: str, times: int, status: Status
) -> None:
    """One domain may map one page 64 times, or 128 times where the kernel is not paravirtual.

    It may copy from it without limit.
    """
    with connect(ON_DEMAND, socket=socket) as front:
        work = Workload(front.start(size=256), backend.image(socket).read_bytes())
        slot, bus = work.slots[0], work.slots[1].data
        length = LENGTH
        header, _, end = a_read(work, slot, bus)
        with work.memory.granted(bus, length):
            chain = [header, *[Segment(bus, length, True)] * times, end]
            assert work.one(slot, chain) == status
            if status == Status.OK:
                last = work.content[(times - 1) * length : times * length]
                assert work.memory.read(bus, length) == last
        work.run(work.done + 16)


def test_a_ring_that_was_never_granted_does_not_start(guest: Guest, connect: Connect) -> None:
    with connect(all_on_demand(NO_ADVANCE)) as front:
        front.negotiate()
        ring = front.add_ring()
        guest.grants.revoke(*front.domain_memory.references(ring.places.used, 4))
        front.share_memory()
        assert not starts(front)


def test_a_ring_that_is_granted_for_reading_alone_does_not_start(
    guest: Guest, connect: Connect
) -> None:
    with connect(all_on_demand(NO_ADVANCE)) as front:
        front.negotiate()
        ring = front.add_ring()
        front.domain_memory.grant(ring.places.used, 4, read_only=True)
        front.share_memory()
        assert not starts(front)


def starts(front: XenFrontEnd) -> bool:
    """Whether ring 0 starts: no message is refused, and it is not broken from the first."""
    try:
        front.start_ring()
    except AssertionError:
        return False
    front.rings[0].kick()
    return not front.rings[0].is_broken()


@pytest.mark.parametrize("layout", [ON_DEMAND, all_on_demand(NO_ADVANCE)], ids=str)
def test_an_indirect_table_that_was_never_granted_fails_its_request_alone(
    backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    with connect(layout) as front:
        work = Workload(front.start(), backend.image("file").read_bytes(), in_tables=1.0)
        ring, bus = work.ring, front.memory.allocate(PAGE, PAGE)
        head = ring.lay_indirect(bus, [Segment(bus, 16)] * 3)
        ring.offer(head)
        work.submit()
        assert ring.wait() == [Used(head, 0)]
        work.finish()
        work.run(work.done + 16)
