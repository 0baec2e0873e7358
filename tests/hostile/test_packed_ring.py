"""Packed rings of a driver that means harm.

Source: VIRTIO 1.3, "Packed Virtqueues". Each queue that breaks did nothing, and queue 1 goes on.
"""

import contextlib
import random
from collections.abc import Callable

import pytest
from peer.blk import CANARY, Status, Type
from peer.memory import GuestMemory, Region
from peer.packed import AVAIL, USED, PackedFrontEnd, PackedRing
from peer.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Segment, Timeout

from .conftest import RING_SIZE as RING
from .racing import GIB, MIB, flipping
from .server import Server


@pytest.fixture
def packed(server: Server) -> PackedFrontEnd:
    """Two running queues, the victim's ring of 256 entries."""
    guest = connected(server)
    guest.start_ring(0, RING)
    guest.start_ring(1)
    return guest


def connected(server: Server, memory: GuestMemory | None = None) -> PackedFrontEnd:
    """A front-end whose rings are packed; nothing is started."""
    return server.track(PackedFrontEnd(server.connect(memory)))


def assert_broken(server: Server, guest: PackedFrontEnd, before: bytes) -> None:
    """Queue 0 is broken and wrote nothing into its ring, which was `before`; the disk is as it was;
    queue 1 runs; a new set-up heals."""
    ring = guest.rings[0]
    assert ring.is_broken(), "the error descriptor was not signalled"
    assert ring.bytes() == before, "the ring was written to"
    assert not any(server.content()), "the disk was written to"
    assert guest.read(1) == bytes(512)
    ring.kick()
    assert guest.read(1) == bytes(512)
    assert ring.bytes() == before, "a broken ring was used"
    guest.restart_ring(0)
    assert guest.read(0) == bytes(512)


def attack(server: Server, guest: PackedFrontEnd, *descriptors: tuple[int, int, int, int]) -> None:
    """Makes a chain of these descriptors available, which breaks the ring."""
    ring = guest.rings[0]
    for descriptor in descriptors:
        ring.put(*descriptor)
    ring.offer()
    before = ring.bytes()
    ring.kick()
    assert_broken(server, guest, before)


def write_request(guest: PackedFrontEnd) -> list[Segment]:
    """A good write of ones, so that a chain that is served all the same shows on the disk."""
    return guest.requests.prepare(Type.OUT, 0, b"\x11" * 512).chain()


# P01


def reach(size: int, flags: list[int]) -> int:
    """How many descriptors the device may take of a new ring with these flags: those of whole
    chains, up to the first that is not available."""
    at = 0
    while at < size and flags[at] & (AVAIL | USED) == AVAIL:
        end = next((n for n in range(at, size) if not flags[n] & NEXT), None)
        if end is None:
            return at
        at = end + 1
    return at


def test_descriptors_that_are_not_available_are_left_alone(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """Rings of noise, whose AVAIL and USED bits are random in each descriptor: 300 rings; with
    VHOST_USER_SOAK=1, 100,000."""
    guest, noise = connected(server), random.Random(6)
    guest.start_ring(1)
    ring = guest.start_ring(0, 16)
    for turn in range(turns(300, 100_000)):
        flags = [
            noise.choice([0, AVAIL, AVAIL, USED, AVAIL | USED])
            | noise.choice([0, 0, NEXT, WRITE, INDIRECT, noise.getrandbits(16) & ~(AVAIL | USED)])
            for _ in range(16)
        ]
        descriptors = [
            DESCRIPTOR.pack(
                noise.choice([MIB + noise.randrange(15 * MIB), noise.getrandbits(64)]),
                noise.choice([noise.randrange(64), 16, 512, 1, noise.getrandbits(32)]),
                noise.choice([noise.randrange(16), noise.randrange(18), noise.getrandbits(16)]),
                flag,
            )
            for flag in flags
        ]
        # No buffer lies in the ring, which begins the memory.
        guest.memory.write(ring.places.descriptors, b"".join(descriptors))
        ring.kick()
        if flags[0] & (AVAIL | USED) == AVAIL:
            assert ends(ring), f"turn {turn}: neither used nor broken"
        if turn % 20 == 0:
            assert len(guest.read(1)) == 512
        guest.stop_ring(0)
        after = guest.memory.read(ring.places.descriptors, 16 * 16)
        kept = 16 * reach(16, flags)
        assert after[kept:] == b"".join(descriptors)[kept:], f"turn {turn}"
        ring.is_broken(0)
        ring.reset()
        guest.start_ring(0)
    server.check_witness()


def ends(ring: PackedRing) -> bool:
    """Waits until the first chain is used or the ring is broken, whichever comes."""
    return any(ring.is_used() or ring.is_broken(0.01) for _ in range(500))


# P02


def test_a_chain_without_end_breaks_the_queue(server: Server, packed: PackedFrontEnd) -> None:
    request = write_request(packed)
    header, data = request[0], request[1]
    one = [(header.address, 16, 0, NEXT)]
    attack(server, packed, *one, *[(data.address, 2, 0, NEXT)] * (RING - 1))


def test_a_chain_that_runs_into_others_in_flight_breaks_the_queue(server: Server) -> None:
    """Behind a good chain, whose descriptors are the device's still, or are used by then."""
    guest = connected(server)
    guest.start_ring(1)
    ring = guest.start_ring(0, 8)
    assert guest.read(0) == bytes(512)
    ring.wait(0)
    for _ in range(8):
        ring.put(write_request(guest)[0].address, 16, 0, NEXT)
    ring.offer()
    before = ring.bytes()
    ring.kick()
    assert_broken(server, guest, before)


# P03


@pytest.mark.parametrize("id_", [RING, RING + 1, 0x7FFF, 0xFFFF])
def test_a_buffer_id_that_the_ring_has_not_breaks_the_queue(
    server: Server, packed: PackedFrontEnd, id_: int
) -> None:
    header, data, status = write_request(packed)
    attack(
        server,
        packed,
        (header.address, 16, 0, NEXT),
        (data.address, 512, 0, NEXT),
        (status.address, 1, id_, WRITE),
    )


@pytest.mark.victim("holding")
def test_a_buffer_id_that_is_in_flight_breaks_the_queue(server: Server) -> None:
    """The one that is in flight comes back all the same."""
    guest = connected(server)
    ring = guest.start_ring(0)
    request = guest.requests.prepare(Type.IN, 0, room=512)
    id_ = ring.add(request.chain())
    ring.kick()
    assert server.awaits("held", 1)
    header, data, status = write_request(guest)
    ring.put(header.address, 16, 0, NEXT)
    ring.put(data.address, 512, 0, NEXT)
    ring.put(status.address, 1, id_, WRITE)
    ring.offer()
    ring.kick()
    assert ring.is_broken()
    assert server.ask("release") == []
    assert ring.wait() == [(id_, 513)]
    assert guest.requests.result(request).status == Status.OK
    assert not any(server.content())


# P04


@pytest.mark.parametrize(
    "length", [0, 8, 15, 17, 47, 49, 63, 16 * 1025, 16 * 65_535, 0xFFFF_FFF0, 0xFFFF_FFFF]
)
def test_an_indirect_table_of_impossible_length_breaks_the_queue(
    server: Server, packed: PackedFrontEnd, length: int
) -> None:
    """Its first three entries are a good request."""
    table = packed.rings[0].write_table(write_request(packed))
    attack(server, packed, (table, length, 0, INDIRECT))


def test_an_indirect_table_inside_another_breaks_the_queue(
    server: Server, packed: PackedFrontEnd
) -> None:
    ring = packed.rings[0]
    inner = ring.write_table(write_request(packed))
    outer = ring.write_table([Segment(inner, 48)], INDIRECT)
    attack(server, packed, (outer, 16, 0, INDIRECT))


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_indirect_table_in_a_chain_breaks_the_queue(
    server: Server, packed: PackedFrontEnd, place: str
) -> None:
    request = write_request(packed)
    table = packed.rings[0].write_table(request[1:])
    header = (request[0].address, 16, 0, NEXT)
    good = {"first": [(table, 32, 0, INDIRECT | NEXT), header], "last": [header]}[place]
    last = (table, 32, 0, INDIRECT) if place == "last" else (request[2].address, 1, 0, WRITE)
    attack(server, packed, *good, last)


@pytest.mark.parametrize("entries", [300, 515, 1024])
def test_an_indirect_table_may_be_longer_than_the_ring(
    packed: PackedFrontEnd, entries: int
) -> None:
    """Of its entries the WRITE flag alone is looked at, and the table is as long as it says."""
    pieces = entries - 2
    request = packed.requests.prepare(Type.IN, 0, room=1024)
    segments = [Segment(request.header, 16)]
    segments += [Segment(request.data + n, 1, True) for n in range(pieces - 1)]
    segments.append(Segment(request.data + pieces - 1, 1025 - pieces, True))
    segments.append(Segment(request.status, 1, True))
    ring = packed.rings[0]
    id_ = ring.add_indirect(ring.write_table(segments, NEXT | AVAIL), 16 * entries)
    ring.kick()
    assert ring.wait() == [(id_, 1025)]
    assert packed.requests.result(request) == (Status.OK, bytes(1024), 0)


# P05


@pytest.mark.parametrize("size", [1, 3, 5, 100, RING])
def test_chains_go_round_the_end_of_rings_of_any_size(server: Server, size: int) -> None:
    """Chains of three descriptors, in the ring where there is room for them, in a table else."""
    guest = connected(server)
    ring = guest.start_ring(0, size)
    laps = 0
    for turn in range(3 * size + 200):
        data = bytes([turn % 251 + 1]) * 512
        request = guest.requests.prepare(Type.OUT, turn % 64, data)
        if size >= 3 and turn % 3:
            ring.add(request.chain())
        else:
            ring.add_indirect(ring.write_table(request.chain()), 48)
        ring.kick()
        ring.wait()
        assert guest.requests.result(request).status == Status.OK
        laps = ring.seen // size
        if turn % 16 == 0:
            assert server.content()[512 * (turn % 64) :][:512] == data
    assert laps >= 3
    end = ring.seen % size | (0x8000 if ring.wrap(ring.seen) else 0)
    assert guest.stop_ring(0) == end << 16 | end


# P06


def words(one: int, other: int) -> tuple[bytes, bytes]:
    """Two values of a field of two bytes."""
    return one.to_bytes(2, "little"), other.to_bytes(2, "little")


FLIPS: dict[str, tuple[int, int, bytes, bytes]] = {
    "length": (1, 8, (512).to_bytes(4, "little"), b"\xff\xff\xff\xff"),
    "id": (2, 12, *words(0, 0xFFFF)),
    "flags": (1, 14, *words(NEXT | WRITE | AVAIL, NEXT | AVAIL)),
    "end": (1, 14, *words(NEXT | WRITE | AVAIL, WRITE | AVAIL)),
    "indirect": (2, 14, *words(WRITE | AVAIL, INDIRECT | AVAIL)),
    "address": (1, 0, (0x8000).to_bytes(8, "little"), GIB.to_bytes(8, "little")),
}
"""Which descriptor of three changes, where in it, and from what to what."""


@pytest.mark.parametrize("field", list(FLIPS))
def test_a_descriptor_that_changes_while_it_is_read_does_no_harm(
    server: Server, turns: Callable[[int, int], int], field: str
) -> None:
    """Each round the chain is served whole or breaks the queue; what lies outside the buffer is
    never written. 100 rounds; with VHOST_USER_SOAK=1, 20,000."""
    memory = GuestMemory(Region(0, 16 * MIB))
    memory.allocate(0x1_0000)  # keeps 0x8000 to 0x8200 for the buffer
    guest = connected(server, memory)
    guest.start_ring(1)
    ring = guest.start_ring(0, 4)
    slot, offset, good, bad = FLIPS[field]
    with flipping(memory.regions[0], ring.address(slot) + offset, good, bad):
        for _ in range(turns(100, 20_000)):
            request = guest.requests.prepare(Type.IN, 0)
            ring.put(request.header, 16, 0, NEXT)
            ring.put(0x8000, 512, 0, NEXT | WRITE)
            ring.put(request.status, 1, 0, WRITE)
            ring.offer()
            ring.kick()
            assert ends(ring)
            guest.restart_ring(0)
            ring.is_broken(0)
    assert not any(memory.regions[0].bytes[0x8200:0x9000])
    server.check_witness()
    assert guest.read(1) == bytes(512)


def test_a_chain_that_comes_and_goes_is_there_or_not(server: Server) -> None:
    """The flags of its first descriptor change between available and not."""
    guest = connected(server)
    guest.start_ring(1)
    ring = guest.start_ring(0, 4)
    good, bad = words(NEXT | AVAIL, 0)
    for _ in range(10):
        request = guest.requests.prepare(Type.IN, 0, room=512)
        ring.lay(request.chain())
        with flipping(guest.memory.regions[0], ring.address(0) + 14, good, bad):
            # It may be missed, and then needs another kick.
            for _ in range(500):
                ring.kick()
                status = guest.memory.read(request.status, 1)[0]
                if status != CANARY or ring.is_broken(0.01):
                    break
            else:
                pytest.fail("the chain was neither seen nor did it break the queue")
        assert status == Status.OK, "a chain that is good whenever it is there"
        guest.restart_ring(0)


# Beside what a chain may be.


@pytest.mark.parametrize("flags", [3, 0xFFFF, 0xFFFC | 2])
def test_nonsense_in_the_drivers_event_area_loses_no_completion(
    server: Server, packed: PackedFrontEnd, flags: int
) -> None:
    """The driver may then get no call, but what it made available is used."""
    ring, noise = packed.rings[0], random.Random(3)
    for turn in range(100):
        area = noise.randrange(0x1_0000).to_bytes(2, "little") + flags.to_bytes(2, "little")
        packed.memory.write(ring.places.available, area)
        ring.add(packed.requests.prepare(Type.IN, turn % 8, room=512).chain())
        ring.kick()
        for _ in range(500):
            with contextlib.suppress(Timeout):
                ring.wait(1, 0.01)
                break
        else:
            pytest.fail("the request was not used")


def test_used_descriptors_that_the_driver_overwrites_are_not_believed(
    packed: PackedFrontEnd,
) -> None:
    """What is in flight is known to the device: it writes where its own place is."""
    ring = packed.rings[0]
    assert packed.read(0) == bytes(512)
    packed.memory.write(ring.places.descriptors, b"\xff" * 48)
    assert packed.read(0) == bytes(512)
    assert packed.stop_ring(0) == 0x8006_8006


def test_event_areas_over_the_descriptors_do_no_harm(server: Server) -> None:
    """The device then writes where it reads; what it makes of that is the driver's problem."""
    guest = connected(server)
    guest.start_ring(1)
    ring = PackedRing(guest.memory, 16)
    ring.places = ring.places._replace(
        available=ring.places.descriptors + 8, used=ring.places.descriptors + 16 * 3 + 12
    )
    guest.rings[0] = ring
    guest.start_ring(0)
    for _ in range(10):
        for segment in write_request(guest):
            ring.put(segment.address, segment.length, ring.next % 16, WRITE * segment.writable)
        ring.offer()
        ring.kick()
    assert guest.read(1)
    server.check_witness()
    guest.stop_ring(0)


def test_two_queues_over_the_same_packed_ring_do_no_harm(server: Server) -> None:
    guest = connected(server)
    ring = guest.start_ring(0)
    guest.rings[1] = ring
    guest.start_ring(1)
    for sector in range(20):
        ring.add(guest.requests.prepare(Type.IN, sector, room=512).chain())
        ring.kick()
    server.check_witness()
    assert guest.front.lives()
    guest.stop_ring(0)
    guest.stop_ring(1)
    del guest.rings[1]
