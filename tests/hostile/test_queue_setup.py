"""Rings that are set up wrongly, and event descriptors that misbehave."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import wire
from peer.blk import Type
from peer.front_end import FrontEnd
from peer.memory import PAGE, GuestMemory, Region
from peer.numbers import NO_FD, Feature, Request
from peer.patience import is_readable
from peer.process import cpu_seconds, eventually

from .conftest import Refused
from .server import Server

QUEUES = 2
MIB = 1 << 20
EVENTS = [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]


@pytest.mark.parametrize(
    "size", [0, 3, 100, 1000, 32_769, 65_536, 65_537, 65_536 + 64, 0xFFFF_FFFF]
)
def test_an_impossible_ring_size_is_refused(server: Server, refused: Refused, size: int) -> None:
    """Not a power of two, too large, or right only in its lower 16 bits."""
    refused(server.connect().negotiate(), Request.SET_VRING_NUM, wire.state(0, size))


@pytest.mark.parametrize("size", [1, 64, 512, 1024, 32_768])
def test_a_ring_is_as_long_as_the_front_end_says(server: Server, size: int) -> None:
    """QEMU's users set queue-size=, and its entropy and clock devices have sizes of their own."""
    front = server.connect().negotiate().share_memory()
    front.start_ring(0, size)
    if size > 1:
        assert front.blk().read(0, 512).status == 0
    assert front.stop_ring() == (1 if size > 1 else 0)


@pytest.mark.parametrize("index", [QUEUES, 0x1_0000, 0xFFFF_FFFF])
@pytest.mark.parametrize(
    "message",
    [
        Request.SET_VRING_NUM,
        Request.SET_VRING_BASE,
        Request.SET_VRING_ENABLE,
        Request.SET_VRING_ADDR,
    ],
)
def test_a_queue_that_does_not_exist_is_refused(
    server: Server, refused: Refused, message: Request, index: int
) -> None:
    front = server.connect().negotiate().share_memory()
    front.add_ring()
    payload = wire.state(index, 1)
    if message == Request.SET_VRING_ADDR:
        payload = wire.U32.pack(index) + front.addresses()[4:]
    refused(front, message, payload)


@pytest.mark.parametrize("message", EVENTS)
@pytest.mark.parametrize(
    ("payload", "count"),
    [
        pytest.param(0, 0, id="none though one is due"),
        pytest.param(NO_FD, 1, id="one though none is due"),
        pytest.param(0, 2, id="two"),
        pytest.param(QUEUES, 1, id="no such queue"),
        pytest.param(1 << 9, 1, id="unknown bit"),
        pytest.param(1 << 32, 1, id="unknown upper bit"),
    ],
)
def test_event_descriptors_that_do_not_fit_the_message_are_refused(
    server: Server, refused: Refused, message: Request, payload: int, count: int
) -> None:
    front = server.connect().negotiate().share_memory()
    front.add_ring()
    front.configure_ring()
    fds = [server.eventfd() for _ in range(count)]
    refused(front, message, wire.u64(payload), fds)


def misplaced(server: Server, size: int, **places: int) -> bool:
    """Whether a ring with such addresses is refused: by its addresses, or when it would start."""
    memory = GuestMemory(Region(0, MIB), Region(4 * MIB, MIB))
    front = server.connect(memory).negotiate(also=Feature.EVENT_IDX).share_memory()
    ring = front.add_ring(0, size)
    front.change(Request.SET_VRING_NUM, wire.state(0, size))
    payload = front.addresses(**places)
    if front.is_refused(Request.SET_VRING_ADDR, payload):
        return front.lives()
    return front.is_refused(Request.SET_VRING_KICK, wire.u64(0), [ring.kick_fd]) and front.lives()


USER = Region(4 * MIB, PAGE).user
END = USER + MIB
SIZE = 64


@pytest.mark.parametrize("part", ["descriptors", "available", "used"])
@pytest.mark.parametrize("address", [0, USER - MIB, END, (1 << 64) - PAGE], ids=hex)
def test_a_ring_part_outside_memory_is_refused(server: Server, part: str, address: int) -> None:
    assert misplaced(server, SIZE, **{part: address})


LAST = {
    "descriptors": END - 16 * SIZE,
    "available": END - (6 + 2 * SIZE),
    "used": END - (6 + 8 * SIZE) - 2,  # two bytes lower, for the alignment
}
ALIGNMENT = {"descriptors": 16, "available": 2, "used": 4}


@pytest.mark.parametrize("part", list(LAST))
def test_a_ring_part_may_end_where_its_region_ends_and_no_later(server: Server, part: str) -> None:
    """The event fields behind the available and the used ring count."""
    assert not misplaced(server, SIZE, **{part: LAST[part]})
    server.hang_up()
    assert misplaced(server, SIZE, **{part: LAST[part] + ALIGNMENT[part]})


@pytest.mark.parametrize("part", list(LAST))
def test_a_misaligned_ring_part_is_refused(server: Server, part: str) -> None:
    assert misplaced(server, SIZE, **{part: USER + ALIGNMENT[part] // 2})


@pytest.mark.parametrize("flags", [0xFFFF_FFFE, 0x2])
def test_unknown_address_flags_are_refused(server: Server, refused: Refused, flags: int) -> None:
    front = server.connect().negotiate().share_memory()
    front.add_ring()
    front.change(Request.SET_VRING_NUM, wire.state(0, 64))
    refused(front, Request.SET_VRING_ADDR, front.addresses(flags=flags))


def test_a_base_beyond_16_bits_is_refused(server: Server, refused: Refused) -> None:
    front = server.connect().negotiate()
    refused(front, Request.SET_VRING_BASE, wire.state(0, 0x12345))


def test_a_base_that_the_available_index_contradicts_breaks_the_queue(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    base = 0x8000
    front.memory.write(ring.places.used + 2, base.to_bytes(2, "little"))
    ring.available_index = 1
    front.start_ring(base=base)
    ring.kick()
    assert ring.is_broken()
    assert ring.used_index == base


def kick_kinds(server: Server, folder: Path) -> dict[str, Callable[[], int]]:
    plain = folder / "plain"
    plain.write_bytes(bytes(8))
    return {
        "memfd": server.memfd,
        "file": lambda: server.own(os.open(plain, os.O_RDWR)),
        "directory": lambda: server.own(os.open(folder, os.O_RDONLY)),
    }


@pytest.mark.parametrize("kind", ["memfd", "file", "directory"])
def test_a_kick_descriptor_that_cannot_be_waited_for_is_refused(
    server: Server, refused: Refused, tmp_path: Path, kind: str
) -> None:
    front = server.connect().negotiate().share_memory()
    front.add_ring()
    front.configure_ring()
    descriptor = kick_kinds(server, tmp_path)[kind]()
    refused(front, Request.SET_VRING_KICK, wire.u64(0), [descriptor])


def test_a_kick_pipe_that_nobody_writes_is_no_busy_loop(server: Server) -> None:
    """A pipe whose writer is gone is always ready and never has a kick."""
    front = server.connect().negotiate().share_memory()
    front.add_ring()
    front.configure_ring()
    reader, writer = os.pipe()
    os.close(writer)
    taken = not front.is_refused(Request.SET_VRING_KICK, wire.u64(0), [server.own(reader)])
    if taken:
        front.enable()
    before = cpu_seconds(server.pid)
    time.sleep(1.0)  # the span that is measured, not a synchronisation
    assert cpu_seconds(server.pid) - before < 0.05
    assert front.stop_ring() == 0


def test_a_blocking_kick_descriptor_that_others_drain_never_holds_the_worker(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """Two thousand races; with VHOST_USER_SOAK=1, 100,000."""
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    os.set_blocking(ring.kick_fd, True)
    front.start_ring()
    done = threading.Event()

    def steal() -> None:
        while not done.is_set():
            if is_readable(ring.kick_fd, 0.01) and not done.is_set():
                ring.kick()  # so that this thread's own read cannot block
                os.eventfd_read(ring.kick_fd)

    thief = threading.Thread(target=steal)
    thief.start()
    for _ in range(turns(2000, 100_000)):
        ring.kick()
    done.set()
    thief.join()
    assert front.blk().read(0, 512).status == 0
    assert front.stop_ring() == 1


STORM = """
import os, sys
kick = int(sys.argv[1])
sys.stdout.write("storm\\n"); sys.stdout.flush()
one = (1).to_bytes(8, "little")
while True:
    os.write(kick, one)
"""


def test_a_kick_storm_leaves_the_other_device_responsive(server: Server) -> None:
    front = server.started()
    ring = front.rings[0]
    storm = subprocess.Popen(
        [sys.executable, "-c", STORM, str(ring.kick_fd)],
        stdout=subprocess.PIPE,
        pass_fds=[ring.kick_fd],
    )
    try:
        assert storm.stdout is not None
        assert storm.stdout.readline() == b"storm\n"
        for _ in range(50):
            server.check_witness()
            assert front.lives()
    finally:
        storm.kill()
        storm.communicate()
    assert front.blk().read(0, 512).status == 0


def io_until(front: FrontEnd, change: Callable[[int], None], turns: int) -> None:
    """Changes something `turns` times while requests flow; none may be lost."""
    ring, disk = front.rings[0], front.blk()
    requests = [disk.prepare(Type.IN, n, room=512) for n in range(8)]
    for turn in range(turns):
        for request in requests:
            disk.submit(request)
        ring.kick()
        change(turn)
        ring.wait(len(requests))
    assert front.stop_ring() == turns * len(requests) & 0xFFFF


def test_a_ring_that_is_toggled_under_load_loses_no_request(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """500 turns; with VHOST_USER_SOAK=1, 100,000."""
    front = server.started()

    def toggle(_: int) -> None:
        front.enable(0, 0)
        front.enable(0, 1)

    io_until(front, toggle, turns(500, 100_000))


def test_a_kick_descriptor_that_is_replaced_under_load_loses_no_kick(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """500 turns; with VHOST_USER_SOAK=1, 10,000. The kick goes to the old descriptor."""
    front = server.started()
    ring = front.rings[0]

    def replace(_: int) -> None:
        fresh = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        front.change(Request.SET_VRING_KICK, wire.u64(0), [fresh])
        os.close(ring.kick_fd)
        ring.kick_fd = fresh

    io_until(front, replace, turns(500, 10_000))


def test_a_ring_is_looked_at_when_its_kick_descriptor_is_replaced(server: Server) -> None:
    """A kick of the old descriptor may be lost on the way, so none is waited for."""
    front = server.started()
    ring, disk = front.rings[0], front.blk()
    for turn in range(20):
        request = disk.prepare(Type.IN, turn, room=512)
        disk.submit(request)
        front.change(Request.SET_VRING_KICK, wire.u64(0), [server.eventfd()])
        ring.wait(1)
        assert disk.result(request).status == 0


def test_a_ring_without_a_kick_descriptor_is_polled(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    front.configure_ring()
    front.change(Request.SET_VRING_CALL, wire.u64(0), [ring.call_fd])
    front.change(Request.SET_VRING_KICK, wire.u64(NO_FD))
    front.enable()
    for sector in range(3):
        request = front.blk().prepare(Type.IN, sector, room=512)
        front.blk().submit(request)
        ring.wait(1)
    assert front.stop_ring() == 3


def test_a_full_call_counter_holds_nothing_up(server: Server) -> None:
    """A blocking call descriptor whose counter is at its limit would block a writer for ever."""
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    full = server.own(os.eventfd(0, os.EFD_CLOEXEC))
    os.eventfd_write(full, (1 << 64) - 2)
    front.configure_ring()
    front.change(Request.SET_VRING_CALL, wire.u64(0), [full])
    front.change(Request.SET_VRING_KICK, wire.u64(0), [ring.kick_fd])
    front.enable()
    request = front.blk().prepare(Type.IN, 0, room=512)
    front.blk().submit(request)
    ring.kick()
    assert eventually(lambda: ring.used_index == 1)
    assert front.blk().result(request).status == 0
    assert front.stop_ring() == 1
