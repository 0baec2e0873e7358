"""A guest may be destroyed at any moment, and the back-end goes on."""

from __future__ import annotations

import os
import signal

import pytest
from peer.blk import Status

from ..backend import BackendProcess
from ..design import NO_ADVANCE
from ..guest import Guest
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE, Layout, all_on_demand, on_demand
from ..workload import Workload
from .conftest import Connect, connector

LAYOUTS = [FOREIGN_LAYOUT, IN_ADVANCE, on_demand(NO_ADVANCE), all_on_demand(NO_ADVANCE)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_requests_of_a_guest_that_is_destroyed_end_and_its_memory_is_freed(
    mortal: Guest, backend: BackendProcess, connect: Connect, layout: Layout
) -> None:
    """What is mapped stays until it is unmapped, and what is not cannot be mapped any more."""
    image, process = backend.image("map"), backend.process
    with connector(mortal, backend)(layout, socket="map") as front:
        work = Workload(front.start(), image.read_bytes())
        work.run(16)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        work.submit()
        mortal.destroy()
        process.send_signal(signal.SIGCONT)
        if layout.on_demand:
            assert len(work.ring.wait(len(work.slots))) == len(work.slots)
            states = [work.memory.read(slot.status, 1)[0] for slot in work.slots]
            assert Status.OK not in states
            assert image.read_bytes() == work.content
        else:
            work.finish()
    assert process.poll() is None, backend.log()
    with connect(layout, socket="map") as front:
        work = Workload(front.start(), image.read_bytes())
        work.run(16)
        work.flush()
