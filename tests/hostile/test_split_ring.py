"""A driver that lies in the split virtqueue, and one that is only unusual."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peer import wire
from peer.blk import Request, Status, Type
from peer.front_end import FrontEnd
from peer.memory import GuestMemory, Region
from peer.numbers import Feature
from peer.numbers import Request as Message
from peer.process import eventually, private_kib
from peer.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Segment, Timeout

from .attack import assert_broken
from .server import Server

MIB = 1 << 20
GIB = 1 << 30
RING = 256
FLIPPER = Path(__file__).with_name("flipper.py")
FLOODER = Path(__file__).with_name("flooder.py")


@pytest.fixture
def front(server: Server) -> FrontEnd:
    """Two running queues, the victim's ring of 256 entries."""
    front = server.connect().negotiate().share_memory()
    front.start_ring(0, RING)
    front.start_ring(1)
    return front


def write_request(front: FrontEnd) -> Request:
    """A good write of ones, so that a chain that is served all the same shows on the disk."""
    return front.blk().prepare(Type.OUT, 0, b"\x11" * 512)


def lay(front: FrontEnd, *descriptors: tuple[int, int, int, int]) -> None:
    """Writes descriptors 0, 1, 2 ..., makes 0 available and kicks."""
    ring = front.rings[0]
    for index, descriptor in enumerate(descriptors):
        ring.set_descriptor(index, *descriptor)
    ring.offer(0)
    ring.kick()


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


def table_of(front: FrontEnd, entries: int) -> tuple[Request, int]:
    """A read in an indirect table of so many entries: header, one-byte pieces, and the status."""
    pieces = entries - 2
    request = front.blk().prepare(Type.IN, 0, room=-(-pieces // 512) * 512)
    whole = request.length
    segments = [Segment(request.header, 16)]
    segments += [Segment(request.data + n, 1, True) for n in range(pieces - 1)]
    segments.append(Segment(request.data + pieces - 1, whole - pieces + 1, True))
    segments.append(Segment(request.status, 1, True))
    table = front.memory.allocate(16 * entries)
    front.rings[0].write_table(table, segments)
    return request, table


@pytest.mark.parametrize("entries", [300, 515, 1024])
def test_an_indirect_table_may_be_longer_than_the_ring(front: FrontEnd, entries: int) -> None:
    """Windows drivers send up to 515 entries whatever the ring's size."""
    request, table = table_of(front, entries)
    lay(front, (table, 16 * entries, INDIRECT, 0))
    (used,) = front.rings[0].wait(1)
    assert front.blk().result(request) == (Status.OK, bytes(request.length), 0)
    assert used.length == request.length + 1


@pytest.mark.parametrize("entries", [1025, 65_535])
def test_an_indirect_table_beyond_the_limit_breaks_the_queue(
    server: Server, front: FrontEnd, entries: int
) -> None:
    _, table = table_of(front, entries)
    lay(front, (table, 16 * entries, INDIRECT, 0))
    assert_broken(server, front)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 47, 49, 56, 63, 0xFFFF_FFF0])
def test_an_indirect_table_of_impossible_length_breaks_the_queue(
    server: Server, front: FrontEnd, length: int
) -> None:
    """The first three entries are a good chain; a few bytes more do not make it one."""
    _, table = table_of(front, 3)
    lay(front, (table, length, INDIRECT, 0))
    assert_broken(server, front)


def test_an_indirect_table_inside_another_breaks_the_queue(server: Server, front: FrontEnd) -> None:
    _, inner = table_of(front, 3)
    outer = front.memory.allocate(16)
    front.memory.write(outer, DESCRIPTOR.pack(inner, 48, INDIRECT, 0))
    lay(front, (outer, 16, INDIRECT, 0))
    assert_broken(server, front)


@pytest.mark.parametrize("following", [3, 0xFFFF])
def test_a_next_outside_an_indirect_table_breaks_the_queue(
    server: Server, front: FrontEnd, following: int
) -> None:
    request = write_request(front)
    table = front.memory.allocate(48)
    chain = [
        DESCRIPTOR.pack(request.header, 16, NEXT, 1),
        DESCRIPTOR.pack(request.data, 512, NEXT, 2),
        DESCRIPTOR.pack(request.status, 1, WRITE | NEXT, following),
    ]
    front.memory.write(table, b"".join(chain))
    lay(front, (table, 48, INDIRECT, 0))
    assert_broken(server, front)


def test_a_loop_in_an_indirect_table_breaks_the_queue(server: Server, front: FrontEnd) -> None:
    request = write_request(front)
    table = front.memory.allocate(32)
    loop = [DESCRIPTOR.pack(request.header, 16, NEXT, n) for n in (1, 0)]
    front.memory.write(table, b"".join(loop))
    lay(front, (table, 32, INDIRECT, 0))
    assert_broken(server, front)


def test_an_indirect_table_with_a_next_descriptor_breaks_the_queue(
    server: Server, front: FrontEnd
) -> None:
    request = write_request(front)
    table = front.memory.allocate(32)
    front.rings[0].write_table(table, request.chain()[:2])
    lay(front, (table, 32, INDIRECT | NEXT, 1), (request.status, 1, WRITE, 0))
    assert_broken(server, front)


def test_an_indirect_table_without_its_feature_breaks_the_queue(server: Server) -> None:
    front = server.started(queues=2, never=Feature.INDIRECT_DESC)
    front.rings[0].add_indirect(write_request(front).chain())
    front.rings[0].kick()
    assert_broken(server, front)


def test_an_indirect_table_may_follow_direct_descriptors(front: FrontEnd) -> None:
    request = front.blk().prepare(Type.IN, 0, room=512)
    table = front.memory.allocate(32)
    front.rings[0].write_table(table, request.chain()[1:])
    lay(
        front,
        (request.header, 8, NEXT, 1),
        (request.header + 8, 8, NEXT, 2),
        (table, 32, INDIRECT, 0),
    )
    front.rings[0].wait(1)
    assert front.blk().result(request).data == bytes(512)


def test_the_write_flag_beside_indirect_is_ignored(front: FrontEnd) -> None:
    request = front.blk().prepare(Type.IN, 0, room=512)
    front.rings[0].add_indirect(request.chain(), extra_flags=WRITE)
    front.rings[0].kick()
    front.rings[0].wait(1)
    assert front.blk().result(request).status == Status.OK


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
def test_a_buffer_outside_memory_breaks_the_queue(
    server: Server, front: FrontEnd, address: int, length: int, place: str
) -> None:
    request = write_request(front)
    chain = {
        "header": (request.header, 16, NEXT, 1),
        "data": (request.data, 512, NEXT, 2),
        "status": (request.status, 1, WRITE, 0),
    }
    if place == "table":
        lay(front, (address, min(-(-length // 16) * 16, 0xFFFF_FFF0), INDIRECT, 0))
    else:
        _, _, flags, following = chain[place]
        lay(front, *(chain | {place: (address, length, flags, following)}).values())
    assert_broken(server, front)


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


@contextlib.contextmanager
def running(program: Path, *arguments: int | str) -> Iterator[None]:
    """Another processor of the guest: runs a program beside the body. Numbers that are open
    descriptors are passed on."""
    descriptors = [n for n in arguments if isinstance(n, int) and Path(f"/dev/fd/{n}").exists()]
    process = subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        pass_fds=descriptors,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        yield
        assert process.poll() is None, "the other processor stopped"
    finally:
        process.kill()
        process.communicate()


def flipping(
    region: Region, address: int, one: bytes, other: bytes
) -> contextlib.AbstractContextManager[None]:
    """Flips bytes of guest memory while the body runs."""
    offset = address - region.guest + region.offset
    return running(FLIPPER, region.fd, str(offset), one.hex(), other.hex())


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
