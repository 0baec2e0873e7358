"""Whatever ends, the guest has its pages back."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer.numbers import Request

from ..backend import BackendProcess
from ..design import NO_ADVANCE, Design
from ..front_end import XenFrontEnd
from ..guest import Guest
from ..layout import IN_ADVANCE, MORE_THAN_REGIONS, Layout, all_on_demand, on_demand
from ..workload import Workload
from .conftest import Connect, connector, once

ALL_ON_DEMAND = all_on_demand(NO_ADVANCE)
LAYOUTS = [IN_ADVANCE, on_demand(NO_ADVANCE), ALL_ON_DEMAND]


def worked(front: XenFrontEnd, backend: BackendProcess) -> Workload:
    work = Workload(front.start(), backend.image("file").read_bytes())
    work.run(16)
    return work


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("keeps", [once(False), True], ids=["closes-devices", "keeps-devices"])
def test_a_back_end_that_is_killed_leaves_nothing_mapped(
    guest: Guest, tmp_path: Path, layout: Layout, keeps: bool
) -> None:
    """Also while the front-end keeps the descriptors that it sent."""
    backend = BackendProcess(tmp_path)
    with connector(guest, backend)(layout) as front:
        front.keeps_devices = keeps
        worked(front, backend).submit()
        backend.kill()
        assert guest.grants.in_use() == []


def test_stopping_a_ring_unmaps_it(guest: Guest, backend: BackendProcess, connect: Connect) -> None:
    with connect(ALL_ON_DEMAND) as front:
        worked(front, backend)
        ring = front.rings[0].places
        used = front.domain_memory.references(ring.used, 4)
        assert guest.grants.in_use(used) == list(used)
        front.stop_ring()
        assert guest.grants.in_use() == []


def test_a_reset_unmaps_the_rings(guest: Guest, backend: BackendProcess, connect: Connect) -> None:
    with connect(ALL_ON_DEMAND) as front:
        worked(front, backend)
        front.change(Request.RESET_DEVICE)
        assert guest.grants.in_use() == []


@pytest.mark.parametrize(
    "design", [Design.MERGED, once(Design.REVIEW), once(Design.MESSAGE)], ids=str
)
def test_removing_a_region_unmaps_it(
    guest: Guest, backend: BackendProcess, connect: Connect, design: Design
) -> None:
    with connect(IN_ADVANCE, design) as front:
        worked(front, backend)
        front.stop_ring()
        (offer,) = front.domain_memory.offers
        assert len(guest.grants.in_use()) == offer.size >> 12
        front.remove_region(offer)
        assert guest.grants.in_use() == []


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_front_end_that_hangs_up_amid_requests_leaves_nothing_mapped(
    guest: Guest, backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    with connect(layout) as front:
        worked(front, backend).submit()
    assert guest.grants.in_use() == []


@pytest.mark.parametrize("layout", [*map(once, LAYOUTS[:2]), ALL_ON_DEMAND], ids=str)
def test_a_back_end_that_stops_leaves_nothing_mapped(
    guest: Guest, tmp_path: Path, layout: Layout
) -> None:
    with BackendProcess(tmp_path) as backend, connector(guest, backend)(layout) as front:
        worked(front, backend).submit()
        backend.close()
        assert guest.grants.in_use() == []


@pytest.mark.once
def test_memory_outside_all_regions_is_mapped_for_a_request_alone(
    guest: Guest, backend: BackendProcess, connect: Connect
) -> None:
    with connect(MORE_THAN_REGIONS, Design.MESSAGE) as front:
        worked(front, backend)
        rings = {
            reference
            for offer in front.domain_memory.offers
            for reference in front.domain_memory.references(offer.bus, offer.size)
        }
        assert set(guest.grants.in_use()) == rings
