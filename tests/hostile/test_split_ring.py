"""The rings themselves: indexes that jump, wrap or are overwritten, and strange places."""

import contextlib
import random
from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import Status, Type
from peer.front_end import FrontEnd
from peer.numbers import Feature
from peer.numbers import Request as Message
from peer.process import eventually
from peer.ring import INDIRECT, Timeout

from .attack import assert_broken
from .chains import write_request
from .conftest import RING_SIZE as RING
from .server import Server


@pytest.mark.parametrize("ahead", [RING + 1, 0x8000, 0xFFFF], ids=["one more", "half", "one back"])
def test_an_available_index_that_jumps_breaks_the_queue(
    server: Server, front: FrontEnd, ahead: int
) -> None:
    front.rings[0].lay(write_request(front).chain())
    front.rings[0].available_index = ahead
    front.rings[0].kick()
    assert_broken(server, front)


@pytest.mark.parametrize("head", [RING, 0xFFFF])
def test_a_head_outside_the_table_breaks_the_queue(
    server: Server, front: FrontEnd, head: int
) -> None:
    front.rings[0].offer(head)
    front.rings[0].kick()
    assert_broken(server, front)


@pytest.mark.parametrize("event_index", [False, True])
def test_nonsense_in_flags_and_used_event_loses_no_completion(
    server: Server, event_index: bool
) -> None:
    """The driver may then get no call, but what it made available is used."""
    front = server.started(also=Feature.EVENT_IDX if event_index else 0)
    ring, disk = front.rings[0], front.blk()
    noise = random.Random(3)
    ring.available_flags = 0xFFFF
    for turn in range(100):
        ring.used_event = noise.randrange(0x1_0000)
        disk.submit(disk.prepare(Type.IN, turn % 8, room=512))
        ring.kick()
        for _ in range(500):
            with contextlib.suppress(Timeout):
                ring.wait(1, 0.01)
                break
        else:
            pytest.fail("the request was not used")


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_rings_wrap_their_index(
    server: Server, turns: Callable[[int, int], int], size: int
) -> None:
    """A chain of one descriptor that holds header and status through an indirect table. 3,000
    requests; with VHOST_USER_SOAK=1, 200,000, past the 16-bit wrap three times."""
    front = server.connect().negotiate().share_memory()
    ring = front.start_ring(0, size)
    disk = front.blk()
    request = disk.prepare(Type.IN, 3, room=512)
    table = front.memory.allocate(48)
    ring.write_table(table, request.chain())
    ring.set_descriptor(0, table, 48, INDIRECT)
    count = turns(3000, 200_000)
    for _ in range(count):
        ring.offer(0)
        ring.kick()
        ring.wait(1)
    assert disk.result(request).status == Status.OK
    assert front.stop_ring() == count & 0xFFFF


@pytest.mark.victim("ram", queue_size=32_768)
@pytest.mark.parametrize("size", [8, 1024, 32_768])
def test_the_index_wraps_at_sixteen_bits(server: Server, size: int) -> None:
    """The ring starts 50 requests before the wrap."""
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring(0, size)
    start = 0x1_0000 - 50
    front.memory.write(ring.places.used + 2, start.to_bytes(2, "little"))
    ring.available_index = ring.seen = start
    front.start_ring(base=start)
    disk = front.blk()
    for turn in range(100):
        data = bytes([turn + 1]) * 512
        assert disk.write(turn, data).status == Status.OK
        assert disk.read(turn, 512).data == data
    assert front.stop_ring() == 150


def test_a_kick_with_nothing_new_does_nothing(server: Server, front: FrontEnd) -> None:
    for _ in range(100):
        front.rings[0].kick()
    assert front.blk(0).read(0, 512).status == 0
    assert front.rings[0].used_index == 1
    assert server.calls() == [("read", 0, 512)]


def test_the_same_head_twice_in_flight_does_no_harm(server: Server, front: FrontEnd) -> None:
    """Served twice or the queue is broken; either way other queues run and a reset heals."""
    request = write_request(front)
    ring = front.rings[0]
    head = ring.lay(request.chain())
    ring.offer(head, head)
    ring.kick()
    if not ring.is_broken(0.5):
        assert [used.head for used in ring.wait(2)] == [head, head]
    assert front.blk(1).read(0, 512).status == 0


def test_a_used_index_that_the_driver_overwrites_is_not_believed(front: FrontEnd) -> None:
    ring, disk = front.rings[0], front.blk()
    assert disk.read(0, 512).status == 0
    front.memory.write(ring.places.used + 2, (40_000).to_bytes(2, "little"))
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    ring.kick()
    assert eventually(lambda: ring.used_index == 2)
    assert front.stop_ring() == 2


@pytest.mark.parametrize("overlap", ["available", "used", "itself"])
def test_parts_of_a_ring_that_overlap_do_no_harm(server: Server, overlap: str) -> None:
    """The device then writes where it reads; what it makes of that is the driver's problem."""
    front = server.connect().negotiate().share_memory()
    front.start_ring(1)
    ring = front.add_ring(0)
    front.change(Message.SET_VRING_NUM, wire.state(0, ring.size))
    here = front.memory.user(ring.places.descriptors)
    lies = {
        "available": {"available": here},
        "used": {"used": here},
        "itself": {"used": front.memory.user(ring.places.available) & ~3},
    }[overlap]
    if front.is_refused(Message.SET_VRING_ADDR, front.addresses(**lies)):
        return
    front.hand_over_events()
    front.enable()
    disk = front.blk()
    for _ in range(10):
        with contextlib.suppress(IndexError):
            disk.submit(disk.prepare(Type.IN, 0, room=512))
        ring.kick()
    assert front.blk(1).read(0, 512).status == 0
    front.stop_ring(0)


def test_two_queues_over_the_same_ring_do_no_harm(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    ring = front.start_ring(0)
    front.rings[1] = ring
    front.configure_ring(1)
    front.hand_over_events(1)
    front.enable(1)
    for sector in range(20):
        front.blk(0).submit(front.blk(0).prepare(Type.IN, sector, room=512))
        ring.kick()
    server.check_witness()
    assert front.lives()
    front.stop_ring(0)
    front.stop_ring(1)
    del front.rings[1]
