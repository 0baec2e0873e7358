"""Devices and commands are the same on Xen, whatever way the guest's memory is reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peer.blk import CANARY, Status
from peer.ring import Segment

from ..backend import DISK_BYTES, BackendProcess, Command
from ..design import FOREIGN, NO_ADVANCE, Kind, Offer
from ..guest import FRAMES, Guest
from ..ioctl import PAGE
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE, on_demand
from ..memory import apart
from ..workload import Workload
from .conftest import Connect, connector, told
from .test_errors import LENGTH, a_read, a_write

LAYOUTS = [FOREIGN_LAYOUT, IN_ADVANCE, on_demand(NO_ADVANCE)]
START = FRAMES[0] * PAGE


@pytest.fixture
def other() -> Iterator[Guest]:
    """Another guest that is as real."""
    with Guest(range(0x100, 0x110)) as made:
        yield made


@pytest.mark.parametrize("socket", ["ram", pytest.param("later", marks=pytest.mark.once)])
def test_a_disk_in_python_sees_no_difference(
    backend: BackendProcess, connect: Connect, socket: str
) -> None:
    content = backend.content
    for layout in LAYOUTS:
        with connect(layout, socket=socket) as front:
            work = Workload(front.start(), content)
            work.run(64)
            work.flush()
            content = bytes(work.content)


@pytest.mark.once
def test_a_disk_that_does_nothing_leaves_memory_as_it_is_or_zeroes_its_copy(
    connect: Connect,
) -> None:
    for layout in LAYOUTS:
        with connect(layout, socket="null") as front:
            work = Workload(front.start(), bytes(DISK_BYTES))
            slot = work.slots[0]
            bus, found = work.slots[1].data, bytes([CANARY]) * LENGTH
            work.memory.write(bus, found)
            if layout.on_demand:
                work.memory.grant(bus, LENGTH)
            for lay in (a_write, a_read):
                assert work.one(slot, lay(work, slot, bus)) == Status.OK
                zeroed = layout.on_demand and lay is a_read
                assert work.memory.read(bus, LENGTH) == (bytes(LENGTH) if zeroed else found)


@pytest.mark.once
def test_random_bytes_come_to_where_the_driver_wants_them_and_nowhere_else(
    connect: Connect,
) -> None:
    for layout in LAYOUTS:
        with connect(layout, socket="rng") as front:
            front.start()
            memory, ring = front.domain_memory, front.rings[0]
            page = memory.allocate(PAGE, PAGE)
            if layout.on_demand:
                memory.grant(page, PAGE)
            ring.add([Segment(page + 8, 100, True)])
            ring.kick()
            (used,) = ring.wait()
            assert used.length == 100
            found = memory.read(page, 116)
            assert found[:8] == found[108:] == bytes(8)
            assert len(set(found[8:108])) > 16


@pytest.mark.once
def test_the_command_serves_an_image_to_the_domain_that_it_is_told_and_to_no_other(
    guest: Guest, other: Guest, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(DISK_BYTES))
    words = ["blk", "--blk-file", str(image), "--xen", "--xen-domain", str(guest.domain)]
    with Command(tmp_path, *words) as command:
        for layout in LAYOUTS:
            with connector(guest, command)(layout) as front:
                work = Workload(front.start(), image.read_bytes())
                work.run(64)
                work.flush()
                assert image.read_bytes() == work.content
        with connector(guest, command)(FOREIGN_LAYOUT) as front:
            front.negotiate()
            offer = Offer(START, PAGE, apart(START), Kind(FOREIGN, other.domain))
            why = f"xen domain id {other.domain}: only domain {guest.domain} is served"
            with told(command, why):
                assert front.refuses_table(offer)


@pytest.mark.once
def test_a_back_end_that_is_told_of_no_domain_serves_each(connect: Connect, other: Guest) -> None:
    with connect(FOREIGN_LAYOUT) as front:
        front.negotiate()
        offer = Offer(START, PAGE, apart(START), Kind(FOREIGN, other.domain))
        assert not front.refuses_table(offer)


@pytest.mark.once
def test_an_example_that_takes_requests_by_the_batch_is_run(guest: Guest, tmp_path: Path) -> None:
    target = "vhost_user.examples.batched:BatchedRamDisk"
    content = bytes(DISK_BYTES)
    with Command(tmp_path, "run", target, f"size={DISK_BYTES}", "--xen") as command:
        for layout in LAYOUTS:
            with connector(guest, command)(layout) as front:
                work = Workload(front.start(), content)
                work.run(64)
                work.flush()
                content = bytes(work.content)
