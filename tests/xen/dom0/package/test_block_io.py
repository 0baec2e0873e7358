"""Block requests over each way to map, told by each design."""

from __future__ import annotations

import pytest

from ..backend import BackendProcess
from ..design import NO_ADVANCE, NO_ADVANCE_RUST_VMM, Design
from ..guest import HIGH_FRAMES
from ..ioctl import PAGE
from ..layout import (
    FOREIGN_BY_GUEST_ADDRESS,
    FOREIGN_INSIDE_PAGES,
    FOREIGN_LAYOUT,
    IN_ADVANCE,
    IN_ADVANCE_INSIDE_PAGES,
    MORE_THAN_REGIONS,
    Layout,
    all_on_demand,
    on_demand,
)
from ..workload import Workload
from .conftest import Connect, once

LAYOUTS = [
    FOREIGN_LAYOUT,
    IN_ADVANCE,
    on_demand(NO_ADVANCE),
    on_demand(NO_ADVANCE_RUST_VMM),
]
DRAFTS = (Design.REVIEW, Design.MESSAGE)
WAYS = [
    (FOREIGN_LAYOUT, Design.MERGED),
    (IN_ADVANCE, Design.MERGED),
    (on_demand(NO_ADVANCE), Design.MERGED),
    (all_on_demand(NO_ADVANCE), Design.MERGED),
    *(once(layout, design) for design in DRAFTS for layout in LAYOUTS),
    *(once(MORE_THAN_REGIONS, design) for design in DRAFTS),
    once(FOREIGN_BY_GUEST_ADDRESS, Design.MERGED),
    once(FOREIGN_INSIDE_PAGES, Design.MERGED),
    once(IN_ADVANCE_INSIDE_PAGES, Design.MERGED),
    once(on_demand(NO_ADVANCE_RUST_VMM), Design.MERGED),
    once(all_on_demand(NO_ADVANCE_RUST_VMM), Design.MERGED),
]
REQUESTS = 2000


def moves_the_right_bytes(
    backend: BackendProcess, connect: Connect, layout: Layout, design: Design, socket: str
) -> None:
    """Reads and writes of all sizes, direct and indirect; then the image is what it should be."""
    image = backend.image(socket)
    with connect(layout, design, socket) as front:
        work = Workload(front.start(), image.read_bytes())
        work.run(REQUESTS)
        work.flush()
        assert image.read_bytes() == work.content
        front.stop_ring()


@pytest.mark.parametrize(("layout", "design"), WAYS, ids=str)
def test_thousands_of_requests_move_the_right_bytes_and_leave_nothing_mapped(
    backend: BackendProcess, connect: Connect, layout: Layout, design: Design
) -> None:
    moves_the_right_bytes(backend, connect, layout, design, "file")


@pytest.mark.once
@pytest.mark.parametrize("layout", [FOREIGN_LAYOUT, on_demand(NO_ADVANCE_RUST_VMM)], ids=str)
def test_rings_of_1024_entries_are_used_to_their_ends(
    backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    """As many as xen-vhost-frontend has for vsock, and as long: each takes eight pages."""
    image = backend.image("long")
    with connect(layout, socket="long") as front:
        front.start(queues=3, size=1024)
        for index in front.rings:
            work = Workload(front, image.read_bytes(), depth=8, data_pages=2, ring=index)
            work.run(1030)
            work.flush()
            assert image.read_bytes() == work.content


def test_memory_behind_4_gib_is_reached(backend: BackendProcess, connect: Connect) -> None:
    """All of it: the rings, too."""
    assert HIGH_FRAMES[0] * PAGE >= 4 << 30
    with connect(FOREIGN_LAYOUT, frames=HIGH_FRAMES) as front:
        content = backend.image("file").read_bytes()
        work = Workload(front.start(), content, depth=2, data_pages=4)
        work.run(100)
        work.flush()
        assert backend.image("file").read_bytes() == work.content


@pytest.mark.parametrize("layout", [on_demand(NO_ADVANCE), all_on_demand(NO_ADVANCE)], ids=str)
def test_buffers_that_are_mapped_and_not_copied_move_the_same(
    backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    moves_the_right_bytes(backend, connect, layout, Design.MERGED, "map")
