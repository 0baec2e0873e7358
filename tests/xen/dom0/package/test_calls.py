"""How often the back-end calls the grant device, for requests whose pages are granted one by one.

A round is 16 requests of 2 to 7 pages each: at most 128 grants. The back-end may take a round in
several batches, as it takes less at once from a slow device; rust-vmm's maps and unmaps at least
three times for each request.
"""

from __future__ import annotations

import pytest

from ..backend import BackendProcess
from ..calls import GrantCalls
from ..design import NO_ADVANCE
from ..layout import IN_ADVANCE, on_demand
from ..workload import DEPTH, Workload
from .conftest import Connect

ROUNDS = 20


@pytest.mark.parametrize(("socket", "way"), [("file", "copy"), ("map", "map")])
def test_requests_share_the_calls_of_their_batch(
    backend: BackendProcess, connect: Connect, socket: str, way: str
) -> None:
    with connect(on_demand(NO_ADVANCE), socket=socket) as front:
        work = Workload(front.start(), backend.image(socket).read_bytes(), indirect=False)
        with GrantCalls(backend.process.pid) as calls:
            work.run(ROUNDS * DEPTH)
        assert 0 < calls.counts[way] < work.done
        assert calls.counts["map"] == calls.counts["unmap"]
        assert calls.counts.total() < 3 * work.done


def test_memory_that_is_mapped_in_advance_takes_no_calls(
    backend: BackendProcess, connect: Connect
) -> None:
    with connect(IN_ADVANCE) as front:
        work = Workload(front.start(), backend.image("file").read_bytes())
        with GrantCalls(backend.process.pid) as calls:
            work.run(ROUNDS * DEPTH)
        assert not calls.counts
