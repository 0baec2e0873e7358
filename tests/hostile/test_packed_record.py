"""The record of a packed ring's requests in flight, into which a front-end writes what it likes.

Source: QEMU "Vhost-user Protocol", "Inflight I/O tracking". Fields of a queue's record: version at
8, entries at 10, the first free entry at 12 and the old one at 14, the next used slot at 16 and the
old one at 18, their wrap counters at 20 and 21; of an entry of 32 bytes from 32 on: whether it is
in flight at 0, the next entry at 2, of a chain's first entry its last at 4 and how many there are
at 6, its number at 8; of the descriptor its id at 16, flags at 18, length at 20 and address at 24.
"""

import os
import random
import struct
from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import CANARY, Status, Type
from peer.front_end import WANTED
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message
from peer.packed import AVAIL, PackedFrontEnd
from peer.ring import NEXT, WRITE

from .conftest import RING_SIZE
from .server import Server

LARGEST = 32768
OF_ONE = 32 * LARGEST + 64
"""Bytes of a queue's record: 32 for each entry and the header, in whole cache lines."""
HEADER = struct.Struct("<8xHHHHHHBB10x")
ENTRY = struct.Struct("<BxHHHQHHIQ")
CHAINS = 3
"""Requests in flight, each of three descriptors."""


def at(entry: int, field: int) -> int:
    """Where a field of an entry is."""
    return 32 + 32 * entry + field


class Marked:
    """Three reads that the driver has made available and a record has in flight."""

    def __init__(self, server: Server) -> None:
        protocol = WANTED | ProtocolFeature.INFLIGHT_SHMFD
        self.server = server
        self.guest = server.track(PackedFrontEnd(server.connect(), protocol=protocol))
        self.payload, self.fd = self.new_record()
        self.guest.start_ring(0, RING_SIZE)
        self.guest.stop_ring()
        ring, requests = self.guest.rings[0], self.guest.requests
        self.reads = [requests.prepare(Type.IN, 0, room=512) for _ in range(CHAINS)]
        self.ids = [ring.add(read.chain()) for read in self.reads]
        end = 3 * CHAINS
        record = HEADER.pack(1, RING_SIZE, end, end, 0, 0, 1, 1)
        for number, (id_, read) in enumerate(zip(self.ids, self.reads, strict=True)):
            first = 3 * number
            for place, segment in enumerate(read.chain()):
                head = (1, first + 2, 3, number) if place == 0 else (0, 0, 0, 0)
                flags = AVAIL | WRITE * segment.writable | (NEXT if place < 2 else 0)
                record += ENTRY.pack(
                    *(head[0], first + place + 1, *head[1:]),
                    *(id_ if place == 2 else 0xBAD0, flags, segment.length, segment.address),
                )
        for entry in range(end, RING_SIZE):
            record += ENTRY.pack(0, entry + 1, 0, 0, 0, 0, 0, 0, 0)
        assert len(record) == at(RING_SIZE, 0)
        os.pwrite(self.fd, record, 0)

    def new_record(self) -> tuple[bytes, int]:
        """A fresh one, as the back-end makes it, in use from now on."""
        front = self.guest.front
        payload = front.channel.ask(Message.GET_INFLIGHT_FD, wire.inflight(0, 0, 1, RING_SIZE))
        assert payload == wire.inflight(OF_ONE, 0, 1, RING_SIZE)
        fd = self.server.own(front.channel.descriptors.pop())
        front.change(Message.SET_INFLIGHT_FD, payload, [fd])
        return payload, fd

    def start(self) -> None:
        """What a front-end does that comes back after a crash. The second queue has no record."""
        self.guest.front.change(Message.SET_INFLIGHT_FD, self.payload, [self.fd])
        self.guest.start_ring()
        self.guest.start_ring(1)

    def change(self, place: int, number: int) -> None:
        """Writes a field of two bytes."""
        os.pwrite(self.fd, number.to_bytes(2, "little"), place)


def test_what_a_packed_record_has_in_flight_is_carried_out_in_its_order(server: Server) -> None:
    marked = Marked(server)
    for chain, number in enumerate([7, 5, 6]):
        marked.change(at(3 * chain, 8), number)
    # The driver's descriptors are not looked at: a device may have written over them.
    ring = marked.guest.rings[0]
    marked.guest.memory.write(ring.address(1), b"\xff" * 14)
    marked.start()
    first, second, third = marked.ids
    assert [used.head for used in ring.wait(CHAINS)] == [second, third, first]
    results = [marked.guest.requests.result(read) for read in marked.reads]
    assert results == [(Status.OK, bytes(512), 0)] * CHAINS
    assert marked.guest.read(0) == bytes(512)
    assert marked.guest.stop_ring() == 0x800C_800C


Spoiled = dict[int, int]
"""Numbers of two bytes, by where they are written."""

SPOILS: dict[str, tuple[Spoiled, str]] = {
    "version": ({8: 7}, "version 7, not 1"),
    "entries": ({10: 65535}, "it is of 65535 entries, the ring has 256"),
    "free": ({14: 65535}, "a wrong link to entry 65535 of 256"),
    "free in a chain": ({14: 4}, "a wrong link to entry"),
    "used slot": ({18: 256}, "it stands at slot 256 of 256, or at a wrong wrap counter"),
    "far used slot": ({16: 65535}, "it stands at slot 65535 of 256, or at a wrong wrap counter"),
    "wrap counters": ({20: 0x0207}, "it stands at slot 0 of 256, or at a wrong wrap counter"),
    "no descriptors": ({at(3, 6): 0}, "a wrong link to entry 5 of 256"),
    "too many descriptors": ({at(3, 6): 65535}, "a wrong link to entry 9 of 256"),
    "last": ({at(3, 4): 65535}, "a wrong link to entry 65535 of 256"),
    "loop": ({at(4, 2): 3}, "a wrong link to entry 3 of 256"),
    "loop of free ones": ({at(200, 2): 100}, "a wrong link to entry 100 of 256"),
    "next": ({at(4, 2): 65535}, "a wrong link to entry 65535 of 256"),
    "id": ({at(5, 16): 256}, "two requests have the buffer id 256, or the ring of 256 entries has"),
    "same id": (
        {at(5, 16): 0},
        "two requests have the buffer id 0, or the ring of 256 entries has",
    ),
    "in the middle": ({at(4, 0): 1, at(4, 6): 2, at(4, 4): 5}, "a wrong link to entry 4 of 256"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_packed_record_with_nonsense_in_a_field_breaks_its_queue(
    server: Server, name: str
) -> None:
    marked, (spoiled, words) = Marked(server), SPOILS[name]
    for place, number in spoiled.items():
        marked.change(place, number)
    marked.start()
    guest, ring = marked.guest, marked.guest.rings[0]
    assert ring.is_broken()
    assert not ring.is_used()
    assert all(guest.memory.read(read.status, 1)[0] == CANARY for read in marked.reads)
    assert guest.read(1) == bytes(512)
    server.assert_logs(
        "queue 0 is broken: the record of requests in flight (SET_INFLIGHT_FD) is not this ring's: "
        + words
    )
    # A new record brings it back, as a front-end asks for it when its driver starts anew.
    guest.stop_ring(0)
    guest.stop_ring(1)
    marked.new_record()
    guest.start_ring()
    assert len(ring.wait(CHAINS)) == CHAINS


def test_a_packed_record_of_noise_never_reaches_beyond_itself(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """40 turns; with VHOST_USER_SOAK=1, 10,000. It is followed as far as it makes sense, or breaks
    its queue: the account that is taken after each test is all that counts.
    """
    chance = random.Random(5)
    for _ in range(turns(40, 10_000)):
        marked = Marked(server)
        if chance.random() < 0.5:
            # What is right but for a few fields goes further.
            for _ in range(chance.randrange(1, 6)):
                place = chance.choice([8 + chance.randrange(14), at(chance.randrange(12), 0)])
                place += chance.randrange(24) if place >= 32 else 0
                marked.change(place, chance.choice([chance.randrange(16), chance.getrandbits(16)]))
        else:
            noise = bytearray(chance.randbytes(at(RING_SIZE, 0)))
            noise[8:12] = struct.pack("<HH", 1, RING_SIZE)
            noise[12:22] = struct.pack(
                "<HHHHBB", *(chance.randrange(RING_SIZE) for _ in range(4)), 1, 1
            )
            for entry in range(RING_SIZE):
                noise[at(entry, 0)] = chance.random() < 0.01
            os.pwrite(marked.fd, noise, 0)
        marked.start()
        assert marked.guest.front.lives()
        marked.guest.close()
        marked.guest.front.close()
