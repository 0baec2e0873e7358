"""Packed rings are mapped, kept and given back as split ones are, and so are rings in order."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from peer.numbers import Feature, Request
from peer.ring import Segment, Used

from ..backend import BackendProcess
from ..calls import GrantCalls
from ..design import NO_ADVANCE, NO_ADVANCE_RUST_VMM, Design
from ..front_end import XenFrontEnd
from ..guest import Guest
from ..ioctl import PAGE
from ..layout import (
    FOREIGN_INSIDE_PAGES,
    FOREIGN_LAYOUT,
    IN_ADVANCE,
    IN_ADVANCE_INSIDE_PAGES,
    MORE_THAN_REGIONS,
    Layout,
    all_on_demand,
    on_demand,
)
from ..workload import DEPTH, Workload
from .conftest import Connect, connector, once, told
from .test_calls import PARTS_OF_A_RING, ROUNDS, check


class Format(NamedTuple):
    """What is accepted beside the rest."""

    name: str
    features: int

    def __str__(self) -> str:
        return self.name


SPLIT_IN_ORDER = Format("split-in-order", Feature.IN_ORDER)
PACKED = Format("packed", Feature.RING_PACKED)
PACKED_IN_ORDER = Format("packed-in-order", Feature.RING_PACKED | Feature.IN_ORDER)
IN_ORDER = (SPLIT_IN_ORDER, PACKED_IN_ORDER)
FORMATS = (PACKED, *IN_ORDER)

ON_DEMAND, ALL_ON_DEMAND = on_demand(NO_ADVANCE), all_on_demand(NO_ADVANCE)
LAYOUTS = (FOREIGN_LAYOUT, IN_ADVANCE, ON_DEMAND, ALL_ON_DEMAND)
DRAFTS = (Design.REVIEW, Design.MESSAGE)
WAYS = [
    *((layout, Design.MERGED, PACKED) for layout in LAYOUTS),
    *(once(layout, Design.MERGED, form) for layout in LAYOUTS for form in IN_ORDER),
    *(once(layout, design, PACKED) for design in DRAFTS for layout in LAYOUTS),
    *(once(MORE_THAN_REGIONS, design, PACKED) for design in DRAFTS),
    once(FOREIGN_INSIDE_PAGES, Design.MERGED, PACKED),
    once(IN_ADVANCE_INSIDE_PAGES, Design.MERGED, PACKED),
    once(on_demand(NO_ADVANCE_RUST_VMM), Design.MERGED, PACKED_IN_ORDER),
]
REQUESTS = 200
"""A ring of 64 entries is filled from its start about five times."""


def moves_the_right_bytes(
    backend: BackendProcess, front: XenFrontEnd, socket: str, form: Format
) -> None:
    """The ring stops half-way, and goes on where it stood."""
    image = backend.image(socket)
    work = Workload(front.start(also=form.features), image.read_bytes())
    assert front.features & form.features == form.features
    work.run(REQUESTS // 2)
    front.run_ring(base=front.stop_ring())
    work.run(REQUESTS)
    work.flush()
    assert image.read_bytes() == work.content
    front.stop_ring()


@pytest.mark.parametrize(("layout", "design", "form"), WAYS, ids=str)
def test_rings_of_each_format_move_the_right_bytes_and_leave_nothing_mapped(
    backend: BackendProcess, connect: Connect, layout: Layout, design: Design, form: Format
) -> None:
    with connect(layout, design) as front:
        moves_the_right_bytes(backend, front, "file", form)


@pytest.mark.parametrize("form", [once(SPLIT_IN_ORDER), PACKED, once(PACKED_IN_ORDER)], ids=str)
@pytest.mark.parametrize("layout", [ON_DEMAND, ALL_ON_DEMAND], ids=str)
def test_buffers_that_are_mapped_and_not_copied_move_the_same(
    backend: BackendProcess, connect: Connect, layout: Layout, form: Format
) -> None:
    with connect(layout, socket="map") as front:
        moves_the_right_bytes(backend, front, "map", form)


@pytest.mark.once
@pytest.mark.parametrize("layout", [FOREIGN_LAYOUT, ALL_ON_DEMAND], ids=str)
@pytest.mark.parametrize("size", [33, 1000])
def test_packed_rings_of_any_length_are_used_to_their_ends(
    backend: BackendProcess, connect: Connect, layout: Layout, size: int
) -> None:
    """Also where that is no power of two, and the descriptors take four pages."""
    image = backend.image("long")
    with connect(layout, socket="long") as front:
        front.start(queues=2, size=size, also=PACKED.features)
        for index in front.packed_rings:
            work = Workload(front, image.read_bytes(), depth=8, data_pages=2, ring=index)
            work.run(300)
            work.flush()
            assert image.read_bytes() == work.content


@pytest.mark.parametrize("socket", ["ram", pytest.param("later", marks=pytest.mark.once)])
def test_a_disk_in_python_sees_no_difference(
    backend: BackendProcess, connect: Connect, socket: str
) -> None:
    content = backend.content
    for layout in (FOREIGN_LAYOUT, IN_ADVANCE, ON_DEMAND):
        for form in FORMATS:
            with connect(layout, socket=socket) as front:
                work = Workload(front.start(also=form.features), content)
                work.run(64)
                work.flush()
                content = bytes(work.content)


@pytest.mark.parametrize(("socket", "maps"), [("file", False), ("map", True)])
@pytest.mark.parametrize("in_tables", [False, once(True)], ids=["direct", "indirect"])
def test_requests_of_a_packed_ring_share_the_calls_of_their_batch(
    backend: BackendProcess, connect: Connect, socket: str, maps: bool, in_tables: bool
) -> None:
    with connect(ON_DEMAND, socket=socket) as front:
        content = backend.image(socket).read_bytes()
        front.start(also=PACKED.features)
        work = Workload(front, content, in_tables=1.0 if in_tables else 0.0)
        with GrantCalls(backend.process.pid) as calls:
            work.run(ROUNDS * DEPTH)
        assert ROUNDS <= len(calls.batches) <= work.done
        check(calls, maps=maps, in_tables=in_tables)


@pytest.mark.once
def test_packed_rings_are_mapped_once_and_go_with_their_stop(
    guest: Guest, backend: BackendProcess, connect: Connect
) -> None:
    with connect(ALL_ON_DEMAND) as front:
        with GrantCalls(backend.process.pid) as calls:
            front.start(also=PACKED.features)
            work = Workload(front, backend.image("file").read_bytes())
            work.run(ROUNDS * DEPTH)
            parts = references(front)
            assert guest.grants.in_use() == parts
            assert len(parts) == PARTS_OF_A_RING
            front.stop_ring()
        assert calls.counts["map"] == calls.counts["release"] == PARTS_OF_A_RING
        assert guest.grants.in_use() == []
        front.run_ring()
        front.change(Request.RESET_DEVICE)
        assert guest.grants.in_use() == []


@pytest.mark.parametrize("layout", [IN_ADVANCE, ALL_ON_DEMAND], ids=str)
def test_whoever_leaves_amid_the_requests_of_a_packed_ring_leaves_nothing_mapped(
    guest: Guest, tmp_path: Path, layout: Layout
) -> None:
    """The front-end, then the back-end."""
    backend = BackendProcess(tmp_path)
    connect = connector(guest, backend)
    with connect(layout) as front:
        submitted(front, backend)
    assert guest.grants.in_use() == []
    with connect(layout) as front:
        submitted(front, backend)
        backend.kill()
        assert guest.grants.in_use() == []


@pytest.mark.parametrize("part", [0, 1, 2], ids=["descriptors", "driver-area", "device-area"])
def test_a_packed_ring_of_which_a_part_was_never_granted_does_not_start(
    guest: Guest, connect: Connect, part: int
) -> None:
    with connect(ALL_ON_DEMAND) as front:
        front.negotiate(also=PACKED.features)
        ring = front.add_packed_ring()
        guest.grants.revoke(*front.domain_memory.references(ring.places[part], 4))
        front.share_memory()
        assert not starts(front)


@pytest.mark.parametrize("part", [0, 2], ids=["descriptors", "device-area"])
def test_a_packed_ring_is_granted_for_writing_or_does_not_start(
    connect: Connect, part: int
) -> None:
    with connect(ALL_ON_DEMAND) as front:
        front.negotiate(also=PACKED.features)
        ring = front.add_packed_ring()
        front.domain_memory.grant(ring.places[part], 4, read_only=True)
        front.share_memory()
        assert not starts(front)


@pytest.mark.parametrize("form", [PACKED, once(PACKED_IN_ORDER)], ids=str)
def test_a_table_that_was_never_granted_fails_its_request_alone(
    backend: BackendProcess, connect: Connect, form: Format
) -> None:
    with connect(ALL_ON_DEMAND) as front:
        front.start(also=form.features)
        work = Workload(front, backend.image("file").read_bytes(), in_tables=1.0)
        bus = front.memory.allocate(PAGE, PAGE)
        head = work.ring.lay_indirect(bus, [Segment(bus, 16)] * 3)
        work.ring.offer(head)
        work.submit()
        assert work.ring.wait() == [Used(head, 0)]
        work.finish()
        work.run(work.done + 16)


@pytest.mark.once
@pytest.mark.parametrize("layout", [FOREIGN_LAYOUT, ALL_ON_DEMAND], ids=str)
def test_a_packed_ring_that_is_malformed_breaks_and_starts_anew(
    backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    with connect(layout) as front:
        front.start(also=PACKED.features)
        ring = front.packed_rings[0]
        with told(backend, "buffer id 64 in a ring of 64 entries"):
            ring.put(ring.places.available, 4, 64, 0)
            ring.offer()
            ring.kick()
            assert ring.is_broken()
        front.stop_ring()
        ring.reset()
        front.run_ring()
        Workload(front, backend.image("file").read_bytes()).run(16)


def references(front: XenFrontEnd) -> list[int]:
    """The pages of the rings' parts, which take one each."""
    parts = [at for ring in front.all_rings() for at in ring.places]
    return sorted(front.domain_memory.references(at, 1)[0] for at in parts)


def submitted(front: XenFrontEnd, backend: BackendProcess) -> None:
    """Some requests are done, and some are on their way."""
    work = Workload(front.start(also=PACKED.features), backend.image("file").read_bytes())
    work.run(16)
    work.submit()


def starts(front: XenFrontEnd) -> bool:
    """Whether packed ring 0 starts: no message is refused, and it is not broken from the first."""
    try:
        front.run_ring()
    except AssertionError:
        return False
    front.packed_rings[0].kick()
    return not front.packed_rings[0].is_broken()
