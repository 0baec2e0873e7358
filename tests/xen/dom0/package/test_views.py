"""What a device in Python sees of granted pages, and for how long they are mapped for it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from peer.blk import HEADER, Status, Type
from peer.ring import Segment

from ..backend import BackendProcess
from ..design import NO_ADVANCE
from ..devices import FORK_SECTOR, KEEP_SECTOR, LET_GO_SECTOR
from ..front_end import XenFrontEnd
from ..guest import Guest
from ..ioctl import PAGE
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE, Layout, all_on_demand, on_demand
from .conftest import Connect, connector

LARGE = 600 << 10
"""Bytes of a read whose pages are mapped for it by default."""

ON_DEMAND = on_demand(NO_ADVANCE)


class Read(NamedTuple):
    """A read in flight."""

    head: int
    data: int
    status: int
    pages: list[int]
    """The references that its data was granted by for this one request."""

    @classmethod
    def submit(cls, front: XenFrontEnd, sector: int = 0, size: int = PAGE) -> Read:
        memory, ring = front.domain_memory, front.rings[0]
        places = [memory.allocate(length, PAGE) for length in (HEADER.size, size, 1)]
        header, data, status = places
        memory.write(header, HEADER.pack(Type.IN, 0, sector))
        pages: list[int] = []
        if front.layout.on_demand:
            memory.grant(header, HEADER.size, read_only=True)
            memory.grant(status, 1)
            pages += memory.grant(data, size)
        buffers = [Segment(header, HEADER.size), Segment(data, size, True)]
        head = ring.add([*buffers, Segment(status, 1, True)])
        ring.kick()
        return cls(head, data, status, pages)

    def result(self, front: XenFrontEnd) -> bytes:
        """The first words of an answered read. Its pages can be taken back by now."""
        memory = front.domain_memory
        assert memory.read(self.status, 1)[0] == Status.OK
        memory.domain.grants.revoke(*self.pages)
        return memory.read(self.data, 6)


def wait(front: XenFrontEnd) -> int:
    """The head of the next request that is answered."""
    (used,) = front.rings[0].wait(1, 20.0)
    return used.head


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (IN_ADVANCE, PAGE),
        (ON_DEMAND, PAGE),
        (ON_DEMAND, LARGE),
        (all_on_demand(NO_ADVANCE), LARGE),
    ],
    ids=str,
)
def test_grants_reach_python_by_a_copy_and_raw_where_that_is_asked_for(
    connect: Connect, layout: Layout, size: int
) -> None:
    for socket, expected in (("views", b"memory"), ("raw", b"device")):
        with connect(layout, socket=socket) as front:
            front.start()
            read = Read.submit(front, size=size)
            assert wait(front) == read.head
            assert read.result(front) == expected


def test_raw_views_of_little_data_are_views_of_a_copy(connect: Connect) -> None:
    with connect(ON_DEMAND, socket="raw") as front:
        front.start()
        read = Read.submit(front, size=512)
        assert wait(front) == read.head
        assert read.result(front) == b"memory"


@pytest.mark.parametrize(("socket", "mapped"), [("views", False), ("raw", True)])
def test_a_page_that_is_shown_raw_stays_mapped_until_its_last_view_is_gone(
    guest: Guest, connect: Connect, socket: str, mapped: bool
) -> None:
    with connect(ON_DEMAND, socket=socket) as front:
        front.start()
        kept = Read.submit(front, KEEP_SECTOR)
        other = Read.submit(front)
        assert wait(front) == other.head
        assert guest.grants.in_use(kept.pages) == (kept.pages if mapped else [])
        letting_go = Read.submit(front, LET_GO_SECTOR)
        assert {wait(front), wait(front)} == {kept.head, letting_go.head}
        assert kept.result(front)[:4] == b"late"
        for read in (other, letting_go):
            read.result(front)


def test_a_destroyed_guest_keeps_the_pages_that_raw_views_show_until_its_front_end_leaves(
    mortal: Guest, backend: BackendProcess, connect: Connect
) -> None:
    with connector(mortal, backend)(ON_DEMAND, socket="raw") as front:
        front.start()
        kept = Read.submit(front, KEEP_SECTOR)
        other = Read.submit(front)
        assert wait(front) == other.head
        mortal.destroy()
        assert mortal.grants.in_use(kept.pages) == kept.pages
    assert mortal.grants.in_use() == []
    with connect(ON_DEMAND, socket="raw") as front:
        front.start()
        read = Read.submit(front, LET_GO_SECTOR)
        assert wait(front) == read.head
        assert read.result(front) == b"device"


@pytest.mark.parametrize(
    ("layout", "socket"), [(FOREIGN_LAYOUT, "views"), (IN_ADVANCE, "raw")], ids=str
)
def test_a_forked_child_finds_zeroes_behind_a_view_of_the_guests_memory(
    connect: Connect, layout: Layout, socket: str
) -> None:
    with connect(layout, socket=socket) as front:
        front.start()
        for sector, expected in ((0, b"device"), (FORK_SECTOR, b"zeroes"), (0, b"device")):
            read = Read.submit(front, sector)
            assert wait(front) == read.head
            assert read.result(front) == expected


def test_a_front_end_that_leaves_gets_back_the_pages_that_raw_views_show(
    guest: Guest, connect: Connect
) -> None:
    """The process goes on, and so do its views: they show memory of its own."""
    with connect(ON_DEMAND, socket="raw") as front:
        front.start()
        kept = Read.submit(front, KEEP_SECTOR)
        other = Read.submit(front)
        assert wait(front) == other.head
        assert guest.grants.in_use(kept.pages) == kept.pages
    assert guest.grants.in_use() == []
    with connect(ON_DEMAND, socket="raw") as front:
        front.start()
        read = Read.submit(front, LET_GO_SECTOR)
        assert wait(front) == read.head
        assert read.result(front) == b"device"
