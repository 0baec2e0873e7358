"""Descriptor chains that lie, and some that are only unusual."""

import contextlib
import random

import pytest
from peer import wire
from peer.blk import Status, Type
from peer.front_end import FrontEnd
from peer.memory import GuestMemory, Region
from peer.numbers import Request
from peer.process import private_kib
from peer.ring import INDIRECT, NEXT, WRITE, Segment, Timeout

from .attack import assert_broken, assert_fails_alone
from .chains import lay, write_request
from .conftest import RING_SIZE as RING
from .server import Server

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    "links",
    [{0: 0}, {0: 1, 1: 0}, {n: (n + 1) % RING for n in range(RING)}],
    ids=["onto itself", "of two", "of the whole table"],
)
def test_a_loop_breaks_the_queue(server: Server, front: FrontEnd, links: dict[int, int]) -> None:
    request = write_request(front)
    for index, following in links.items():
        front.rings[0].set_descriptor(index, request.header, 16, NEXT, following)
    front.rings[0].offer(0)
    front.rings[0].kick()
    assert_broken(server, front)


@pytest.mark.parametrize("following", [RING, 0xFFFF])
def test_a_next_outside_the_table_breaks_the_queue(
    server: Server, front: FrontEnd, following: int
) -> None:
    """The chain is a good one up to there; it is not served as the shorter one."""
    request = write_request(front)
    lay(
        front,
        (request.header, 16, NEXT, 1),
        (request.data, 512, NEXT, 2),
        (request.status, 1, WRITE | NEXT, following),
    )
    assert_broken(server, front)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param(0xFFFF_FFFF_FFFF_FFF0, 0x20, id="wraps"),
        pytest.param(GIB, 512, id="in no region"),
        pytest.param(16 * MIB - 512, 513, id="one byte past a region"),
        pytest.param(16 * MIB, 512, id="at a region's end"),
        pytest.param(0, 0xFFFF_FFFF, id="far past a region"),
    ],
)
@pytest.mark.parametrize("place", ["header", "data", "status", "table"])
def test_a_request_with_a_buffer_outside_memory_fails_alone(
    server: Server, front: FrontEnd, address: int, length: int, place: str
) -> None:
    request = write_request(front)
    chain = {
        "header": (request.header, 16, NEXT, 1),
        "data": (request.data, 512, NEXT, 2),
        "status": (request.status, 1, WRITE, 0),
    }
    if place == "table":
        lay(front, (address, min(-(-length // 16) * 16, 1024), INDIRECT, 0))
    else:
        _, _, flags, following = chain[place]
        # Only a chain of less than 4 GiB is one.
        length = min(length, 0xFFFF_F000)
        lay(front, *(chain | {place: (address, length, flags, following)}).values())
    assert_fails_alone(server, front, request, answered=place in ("header", "data"))


def test_the_log_says_once_a_start_where_memory_is_missing(server: Server, front: FrontEnd) -> None:
    said = "bytes at 0x40000000 cannot be written: no memory region that the front-end has shared"
    before = server.log().count(said)
    for start in (1, 2):
        ring = front.rings[0]
        for _ in range(20):
            request = front.blk().prepare(Type.IN, 0)
            lay(
                front,
                (request.header, 16, NEXT, 1),
                (GIB, 512, NEXT | WRITE, 2),
                (request.status, 1, WRITE, 0),
            )
            ring.wait()
            assert front.memory.read(request.status, 1)[0] == Status.IOERR
        # What comes into the log later shows that nothing of it is still on its way.
        logged = len(server.log())
        assert front.is_refused(Request.SET_VRING_NUM, wire.state(9, 64))
        server.assert_logs("SET_VRING_NUM", after=logged)
        assert server.log().count(said) == before + start
        front.stop_ring()
        ring.reset()
        front.start_ring()


def test_a_buffer_over_two_adjacent_regions_works(server: Server) -> None:
    """The regions are neighbours for the guest, but not in the front-end."""
    memory = GuestMemory(Region(0, MIB), Region(MIB, MIB, user=0x5000_0000_0000))
    front = server.started(memory=memory)
    data = random.Random(2).randbytes(4096)
    disk, border = front.blk(), MIB - 1000
    memory.write(border, data)
    request = disk.prepare(Type.OUT, 0)._replace(data=border, length=4096)
    assert disk.run(request).status == Status.OK
    assert server.content()[:4096] == data
    memory.write(border, bytes(4096))
    request = disk.prepare(Type.IN, 0)._replace(data=border, length=4096, writable=True)
    assert disk.run(request) == (Status.OK, data, 4097)


@pytest.mark.parametrize("place", range(4))
def test_an_empty_descriptor_inside_a_chain_adds_no_byte(
    server: Server, front: FrontEnd, place: int
) -> None:
    request = front.blk().prepare(Type.OUT, 2, b"\x22" * 512)
    chain = request.chain()
    chain.insert(place, Segment(request.data, 0, place == 3))
    front.rings[0].add(chain)
    front.rings[0].kick()
    front.rings[0].wait(1)
    assert front.blk().result(request).status == Status.OK
    assert server.content()[1024:1536] == b"\x22" * 512


@pytest.mark.parametrize("address", [0, 0xFFFF_FFFF_FFFF_FFFF])
@pytest.mark.parametrize("flags", [0, WRITE])
def test_a_chain_of_one_empty_descriptor_does_no_harm(
    server: Server, front: FrontEnd, address: int, flags: int
) -> None:
    """Returned empty, or the queue is broken; the other queue runs."""
    lay(front, (address, 0, flags, 0))
    with contextlib.suppress(Timeout):
        (used,) = front.rings[0].wait(1, 0.5)
        assert used.length == 0
    assert front.blk(1).read(0, 512).status == 0


@pytest.mark.parametrize("lengths", [(1 << 31, 1 << 31), (17, (1 << 32) - 17)])
def test_a_chain_of_four_gibibytes_breaks_the_queue(
    server: Server, lengths: tuple[int, int]
) -> None:
    """Sparse memory makes each buffer real; their sum does not fit 32 bits."""
    memory = GuestMemory(Region(0, 16 * MIB), Region(4 * GIB, 5 * GIB))
    front = server.connect(memory).negotiate().share_memory()
    front.start_ring(0, RING)
    front.start_ring(1)
    request = write_request(front)
    lay(
        front,
        (request.header, 16, NEXT, 1),
        (4 * GIB, lengths[0], NEXT, 2),
        (4 * GIB, lengths[1], NEXT, 3),
        (request.status, 1, WRITE, 0),
    )
    assert_broken(server, front)


def test_a_readable_buffer_after_a_writable_one_transfers_nothing(
    server: Server, front: FrontEnd
) -> None:
    """The queue is broken, or the chain comes back empty."""
    request = write_request(front)
    lay(
        front,
        (request.header, 16, NEXT, 1),
        (request.status, 1, WRITE | NEXT, 2),
        (request.data, 512, 0, 0),
    )
    if not front.rings[0].is_broken(1.0):
        assert front.rings[0].wait(1)[0].length == 0
    assert front.memory.read(request.status, 1) == b"\xa5"
    assert not any(server.content())
    assert front.blk(1).read(0, 512).status == 0


@pytest.mark.victim("holding", size=64 * MIB, queue_size=1024)
def test_memory_does_not_grow_with_what_the_guest_asks_for(server: Server) -> None:
    """256 reads of 64 MiB, each in two pieces, in flight at once: 16 GiB if all were copied."""
    memory = GuestMemory(Region(0, 16 * MIB), Region(GIB, 64 * MIB))
    front = server.connect(memory).negotiate().share_memory()
    ring = front.start_ring(0, 1024)
    disk = front.blk()
    half = 32 * MIB
    for _ in range(256):
        request = disk.prepare(Type.IN, 0)
        pieces = [Segment(GIB, half, True), Segment(GIB + half, half, True)]
        ring.add([Segment(request.header, 16), *pieces, Segment(request.status, 1, True)])
    before = private_kib(server.pid)
    ring.kick()
    assert server.awaits("held", 256)
    assert private_kib(server.pid) - before < 256 * 1024
    server.ask("drop")
    ring.wait(256)
