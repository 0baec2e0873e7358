"""A driver on another processor: it changes what is being read, or never stops."""

import contextlib
import random
from collections.abc import Callable

import pytest
from peer.blk import Status, Type
from peer.front_end import FrontEnd
from peer.memory import GuestMemory, Region
from peer.numbers import Feature
from peer.process import eventually
from peer.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Timeout

from .racing import FLOODER, GIB, MIB, flipping, running
from .server import Server

FLIPS = {
    "length": (8, (512).to_bytes(4, "little"), b"\xff\xff\xff\xff"),
    "flags": (12, NEXT.to_bytes(2, "little"), (NEXT | WRITE).to_bytes(2, "little")),
    "indirect": (12, NEXT.to_bytes(2, "little"), INDIRECT.to_bytes(2, "little")),
    "next": (14, (2).to_bytes(2, "little"), (0xFFFF).to_bytes(2, "little")),
    "address": (0, (0x8000).to_bytes(8, "little"), (GIB).to_bytes(8, "little")),
}


@pytest.mark.parametrize("field", list(FLIPS))
def test_a_descriptor_that_changes_while_it_is_read_does_no_harm(
    server: Server, turns: Callable[[int, int], int], field: str
) -> None:
    """Each round the chain is served whole or breaks the queue; what lies outside the buffer is
    never written. 100 rounds; with VHOST_USER_SOAK=1, 20,000."""
    memory = GuestMemory(Region(0, 16 * MIB))
    memory.allocate(0x1_0000)  # keeps 0x8000 to 0x8200 for the buffer
    front = server.connect(memory).negotiate().share_memory()
    front.start_ring(1)
    around = slice(0x8200, 0x9000)
    offset, good, bad = FLIPS[field]
    ring = front.start_ring(0)
    descriptor = ring.places.descriptors + 16 + offset
    with flipping(memory.regions[0], descriptor, good, bad):
        for _ in range(turns(100, 20_000)):
            request = front.blk().prepare(Type.IN, 0)
            ring.set_descriptor(0, request.header, 16, NEXT, 1)
            ring.set_descriptor(1, 0x8000, 512, NEXT | WRITE, 2)
            ring.set_descriptor(2, request.status, 1, WRITE)
            ring.offer(0)
            ring.kick()
            outcome = await_end(front)
            if outcome == "broken":
                front.stop_ring(0)
                ring.reset()
                front.start_ring(0)
    assert not any(memory.regions[0].bytes[around])
    server.check_witness()
    assert front.blk(1).read(0, 512).status == 0


def await_end(front: FrontEnd) -> str:
    """Waits until ring 0 has used a chain or is broken, whichever comes."""
    ring = front.rings[0]
    for _ in range(500):
        if ring.is_broken(0):
            return "broken"
        with contextlib.suppress(Timeout):
            ring.wait(1, 0.01)
            return "used"
    raise AssertionError("the chain was neither used nor did it break the queue")


HEADER_FLIPS = {
    "type": (0, (0).to_bytes(4, "little"), (1).to_bytes(4, "little")),
    "sector": (8, (8).to_bytes(8, "little"), (1 << 55).to_bytes(8, "little")),
}


@pytest.mark.parametrize("field", list(HEADER_FLIPS))
def test_a_header_that_changes_while_it_is_read_writes_only_where_it_may(
    server: Server, turns: Callable[[int, int], int], field: str
) -> None:
    """Type flips between read and write, the sector between one in range and one out of it.
    300 requests; with VHOST_USER_SOAK=1, 100,000."""
    front = server.started()
    disk = front.blk()
    request = disk.prepare(Type.OUT, 8, b"\x33" * 512)
    offset, one, other = HEADER_FLIPS[field]
    with flipping(front.memory.regions[0], request.header + offset, one, other):
        for _ in range(turns(300, 100_000)):
            assert disk.run(request).status in (Status.OK, Status.IOERR)
    content = server.content()
    assert content[4096:4608] in (b"\x33" * 512, bytes(512))
    assert not any(content[:4096])
    assert not any(content[4608:])


def test_a_queue_that_is_always_full_does_not_starve_the_other(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """Another processor refills queue 0 for ever while queue 1 is asked 50 times (1,000 with
    VHOST_USER_SOAK=1)."""
    front = server.connect().negotiate().share_memory()
    ring = front.start_ring(0, 64)
    front.start_ring(1)
    disk = front.blk()
    for position in range(ring.size):
        ring.set_slot(position, 2 * position % ring.size)
    for _ in range(ring.size // 2):
        ring.lay(disk.prepare(Type.FLUSH, 0).chain())
    places = map(str, ring.places[1:])
    with running(FLOODER, front.memory.regions[0].fd, ring.kick_fd, *places):
        assert eventually(lambda: ring.used_index != 0)
        for _ in range(turns(50, 1000)):
            assert front.blk(1).read(0, 512, 1.0).status == 0
            server.check_witness()


def test_rings_of_noise_do_no_harm(server: Server, turns: Callable[[int, int], int]) -> None:
    """Random bytes in all parts of the ring, with the indexes now and then made to fit: 200 rings;
    with VHOST_USER_SOAK=1, 100,000."""
    front = server.connect().negotiate(also=Feature.EVENT_IDX).share_memory()
    front.start_ring(1)
    ring = front.start_ring(0, 16)
    noise = random.Random(5)
    places = ring.places
    for turn in range(turns(200, 100_000)):
        descriptors = b"".join(
            DESCRIPTOR.pack(
                noise.choice([noise.randrange(16 * MIB), noise.getrandbits(64)]),
                noise.choice([noise.randrange(64), 16, 512, 1, noise.getrandbits(32)]),
                noise.choice([0, 1, 2, 3, 4, 5, 7, noise.getrandbits(16)]),
                noise.choice([noise.randrange(16), noise.getrandbits(16)]),
            )
            for _ in range(16)
        )
        front.memory.write(places.descriptors, descriptors)
        front.memory.write(places.available + 4, noise.randbytes(2 * 16 + 2))
        for position in range(8):
            ring.set_slot(position, noise.randrange(17))
        ring.available_index = noise.choice([1, 4, 8, 16, 17, noise.getrandbits(16)])
        ring.kick()
        if turn % 20 == 0:
            front.rings[1].used_event = front.rings[1].seen
            assert front.blk(1).read(0, 512, 1.0).status == 0
        front.stop_ring(0)
        ring.reset()
        front.start_ring(0)
    server.check_witness()
