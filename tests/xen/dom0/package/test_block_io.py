"""Block requests over each way to map, told by each design."""

from __future__ import annotations

import pytest

from ..backend import BackendProcess
from ..design import NO_ADVANCE, NO_ADVANCE_RUST_VMM, Design
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
from .conftest import Connect

LAYOUTS = [
    FOREIGN_LAYOUT,
    IN_ADVANCE,
    on_demand(NO_ADVANCE),
    on_demand(NO_ADVANCE_RUST_VMM),
]
WAYS = [
    *((layout, design) for design in Design for layout in LAYOUTS),
    *((MORE_THAN_REGIONS, design) for design in (Design.REVIEW, Design.MESSAGE)),
    (FOREIGN_BY_GUEST_ADDRESS, Design.MERGED),
    (FOREIGN_INSIDE_PAGES, Design.MERGED),
    (IN_ADVANCE_INSIDE_PAGES, Design.MERGED),
    *((all_on_demand(flag), Design.MERGED) for flag in (NO_ADVANCE, NO_ADVANCE_RUST_VMM)),
]
NAMES = [f"{layout.name}-{design.name.lower()}" for layout, design in WAYS]
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


@pytest.mark.parametrize(("layout", "design"), WAYS, ids=NAMES)
def test_thousands_of_requests_move_the_right_bytes_and_leave_nothing_mapped(
    backend: BackendProcess, connect: Connect, layout: Layout, design: Design
) -> None:
    moves_the_right_bytes(backend, connect, layout, design, "file")


@pytest.mark.parametrize("layout", [on_demand(NO_ADVANCE), all_on_demand(NO_ADVANCE)], ids=str)
def test_buffers_that_are_mapped_and_not_copied_move_the_same(
    backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    moves_the_right_bytes(backend, connect, layout, Design.MERGED, "map")
