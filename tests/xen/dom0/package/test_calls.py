"""How often the back-end calls the grant device, for requests whose pages are granted one by one.

The goal: for each 128 grants of a batch at most one call that maps and one that unmaps, or copies
instead; rust-vmm's maps and unmaps at least three times for each request. The rounds of requests
here have at most 128 pages of data, so a batch, which is a round or a part of one, has one call at
most. Where a batch ends is seen from the back-end's signal to the driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..backend import BackendProcess
from ..calls import GrantCalls
from ..design import NO_ADVANCE
from ..guest import Guest
from ..layout import IN_ADVANCE, all_on_demand, on_demand
from ..memory import PAGES
from ..workload import DATA_PAGES, DEPTH, Workload
from .conftest import Connect, connector, once

ROUNDS = 20
GRANTS_OF_A_CALL = 128
PARTS_OF_A_RING = 3

LIMIT = Path("/sys/module/xen_gntdev/parameters/limit")
"""The most references that one call takes."""

WAYS = pytest.mark.parametrize(("socket", "maps"), [("file", False), ("map", True)])


def check(calls: GrantCalls, *, maps: bool, in_tables: bool) -> None:
    """No batch may take more calls than one of 128 grants."""
    for batch in calls.batches:
        assert batch["map"] <= (1 if maps else 0), batch
        assert batch["map"] == batch["unmap"] == batch["release"], batch
        assert batch["left"] == 0, "pages were mapped when the driver was told"
        # What lies in tables, what the device reads, what it has written.
        assert batch["copy"] <= (3 if in_tables else 2), batch
    each = sum(calls.batches, Counter[str]())
    assert each == +calls.counts, "every call is for a batch"
    assert bool(each["map"]) == maps


@WAYS
@pytest.mark.parametrize("in_tables", [False, once(True)], ids=["direct", "indirect"])
def test_requests_share_the_calls_of_their_batch(
    backend: BackendProcess, connect: Connect, socket: str, maps: bool, in_tables: bool
) -> None:
    assert DEPTH * DATA_PAGES <= GRANTS_OF_A_CALL
    with connect(on_demand(NO_ADVANCE), socket=socket) as front:
        content = backend.image(socket).read_bytes()
        work = Workload(front.start(), content, in_tables=1.0 if in_tables else 0.0)
        with GrantCalls(backend.process.pid) as calls:
            work.run(ROUNDS * DEPTH)
        assert ROUNDS <= len(calls.batches) <= work.done
        check(calls, maps=maps, in_tables=in_tables)


@pytest.mark.once
@WAYS
def test_the_tables_of_a_batch_are_read_by_one_call(
    guest: Guest,
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
    socket: str,
    maps: bool,
) -> None:
    requests = 64
    # A back-end that has not found its disk slow yet takes half of what is there at once.
    with (
        BackendProcess(tmp_path) as backend,
        connector(guest, backend)(on_demand(NO_ADVANCE), socket=socket) as front,
    ):
        content = backend.image(socket).read_bytes()
        work = Workload(front.start(), content, depth=requests, data_pages=1, in_tables=1.0)
        front.enable(on=0)
        work.submit()
        with GrantCalls(backend.process.pid) as calls:
            front.enable(on=1)
            work.finish()
        shown = ", ".join(f"{count} {name}" for name, count in sorted(calls.counts.items()))
        record_testsuite_property(f"{socket}: calls for {requests} requests in tables", shown)
        record_testsuite_property(f"{socket}: batches of them", len(calls.batches))
        assert len(calls.batches) <= requests // 2 + 1
        check(calls, maps=maps, in_tables=True)


@pytest.mark.once
def test_rings_are_mapped_once(backend: BackendProcess, connect: Connect) -> None:
    with connect(all_on_demand(NO_ADVANCE)) as front:
        with GrantCalls(backend.process.pid) as calls:
            front.start()
            work = Workload(front, backend.image("file").read_bytes())
            work.run(ROUNDS * DEPTH)
            front.stop_ring()
        assert calls.counts["map"] == calls.counts["release"] == PARTS_OF_A_RING
        assert sum(batch["release"] for batch in calls.batches) == 0, "not before the ring stops"


@pytest.fixture
def limit() -> Iterator[int]:
    """The references that a call takes, far fewer than those of a region."""
    before = LIMIT.read_text()
    LIMIT.write_text("16")
    yield 16
    LIMIT.write_text(before)


@pytest.mark.once
def test_a_region_and_a_request_are_mapped_by_as_many_calls_as_the_driver_wants(
    guest: Guest, tmp_path: Path, limit: int
) -> None:
    with BackendProcess(tmp_path) as backend:
        connect = connector(guest, backend)
        with connect(IN_ADVANCE) as front:
            assert 2 * limit < PAGES
            with GrantCalls(backend.process.pid) as calls:
                front.start()
            assert calls.counts["map"] == calls.counts["unmap"] == -(-PAGES // limit)
            Workload(front, backend.image("file").read_bytes()).run(2 * DEPTH)
        with connect(on_demand(NO_ADVANCE), socket="map") as front:
            content = backend.image("map").read_bytes()
            work = Workload(front.start(), content, depth=4, data_pages=2 * limit + 1)
            with GrantCalls(backend.process.pid) as calls:
                work.run(2 * DEPTH)
            work.flush()
            assert backend.image("map").read_bytes() == work.content
        assert calls.counts["map"] > len(calls.batches)
        assert calls.counts["map"] == calls.counts["unmap"] == calls.counts["release"]


@pytest.mark.once
def test_memory_that_is_mapped_in_advance_takes_no_calls(
    backend: BackendProcess, connect: Connect
) -> None:
    with connect(IN_ADVANCE) as front:
        work = Workload(front.start(), backend.image("file").read_bytes())
        with GrantCalls(backend.process.pid) as calls:
            work.run(ROUNDS * DEPTH)
        assert not calls.counts
