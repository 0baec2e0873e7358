"""One process, one package: front-ends with and without Xen at the same time."""

from __future__ import annotations

import pytest
from peer.front_end import FrontEnd
from peer.numbers import ProtocolFeature

from ..backend import BackendProcess
from ..design import NO_ADVANCE
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE, Layout, on_demand
from ..workload import Workload
from .conftest import Connect

LAYOUTS = [FOREIGN_LAYOUT, IN_ADVANCE, on_demand(NO_ADVANCE)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_ordinary_front_end_is_served_beside_one_of_xen(
    backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    content = backend.image("file").read_bytes()
    with (
        connect(layout) as front,
        FrontEnd.connect(backend.socket("plain")).start() as ordinary,
    ):
        assert not ordinary.protocol_offered & ProtocolFeature.XEN_MMAP
        work = Workload(front.start(), content)
        for turn in range(16):
            work.submit()
            data = bytes([turn]) * 4096
            assert ordinary.blk().write(8 * turn, data).status == 0
            assert ordinary.blk().read(8 * turn, 4096).data == data
            work.finish()


@pytest.mark.once
def test_a_front_end_that_does_not_take_xen_mmap_is_served_as_an_ordinary_one(
    backend: BackendProcess,
) -> None:
    with FrontEnd.connect(backend.socket("ram")).start() as front:
        assert front.protocol_offered & ProtocolFeature.XEN_MMAP
        assert not front.protocol & ProtocolFeature.XEN_MMAP
        assert front.blk().read(0, 4096).data == backend.content[:4096]
