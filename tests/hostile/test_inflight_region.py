"""The record of requests in flight: a front-end asks for it, gives it back, and may write into it.

Source: QEMU "Vhost-user Protocol", "Inflight I/O tracking". Fields of a queue's record: version at
8, entries at 10, the head that was given back last at 12, used index at 14; of an entry of 16 bytes
from 16 on: whether it is in flight at 0, the next one given back at 6, its number at 8.
"""

import os
import random
import struct
from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import CANARY, Status, Type
from peer.front_end import WANTED, FrontEnd
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message

from .conftest import RING_SIZE, Refused
from .server import Server

LARGEST = 32768
"""Entries of the longest ring that the victim takes."""
OF_ONE = 16 * LARGEST + 64
"""Bytes of a queue's record: 16 for each entry and the header, in whole cache lines."""


def negotiated(server: Server) -> FrontEnd:
    return server.connect().negotiate(protocol=WANTED | ProtocolFeature.INFLIGHT_SHMFD)


def ask(front: FrontEnd, queues: int, entries: int) -> bytes:
    return front.channel.ask(Message.GET_INFLIGHT_FD, wire.inflight(0, 0, queues, entries))


def new_record(server: Server, front: FrontEnd, entries: int = RING_SIZE) -> tuple[bytes, int]:
    """A fresh record, as the back-end makes it: what describes it and its file."""
    payload = ask(front, 1, entries)
    return payload, server.own(front.channel.descriptors.pop())


def set_word(fd: int, at: int, value: int) -> None:
    os.pwrite(fd, struct.pack("<H", value), at)


# I01


def test_a_record_of_more_queues_than_the_device_has_is_not_made(server: Server) -> None:
    front = negotiated(server)
    for queues, entries in [(0xFFFF, 0xFFFF), (3, 64), (0, 64)]:
        assert ask(front, queues, entries) == bytes(24)
        assert not front.channel.descriptors
    assert front.lives()


@pytest.mark.parametrize("entries", [0, 1, 128, 1024, 0xFFFF])
def test_a_record_has_room_for_the_longest_ring_whatever_was_asked_for(
    server: Server, entries: int
) -> None:
    """QEMU 10 asks for 128 entries and runs rings of 1024."""
    front = negotiated(server)
    payload, fd = new_record(server, front, entries)
    assert payload == wire.inflight(OF_ONE, 0, 1, entries)
    assert os.fstat(fd).st_size == OF_ONE
    front.change(Message.SET_INFLIGHT_FD, payload, [fd])
    front.share_memory().start_ring(0, 1024)
    assert front.blk().read(0, 512).status == Status.OK
    # A ring of 1024 entries has its record there.
    assert struct.unpack("<HH", os.pread(fd, 4, 8)) == (1, 1024)


# I02


@pytest.mark.parametrize("queues", [0, 3, 255, 0xFFFF])
def test_a_record_of_queues_that_there_are_not_is_refused(
    server: Server, refused: Refused, queues: int
) -> None:
    front = negotiated(server)
    _, fd = new_record(server, front)
    payload = wire.inflight(OF_ONE, 0, queues, 64)
    refused(front, Message.SET_INFLIGHT_FD, payload, [fd])
    server.assert_logs(f"SET_INFLIGHT_FD: a record of {queues} queues, the device has 2")


# I03


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (0, 0),
        (31, 0),
        (OF_ONE + 1, 0),
        (2 * OF_ONE, 0),
        (OF_ONE, 4096),
        (OF_ONE, 2**64 - 4096),
        (2**64 - 1, 1),
        (2**63, 0),
    ],
)
def test_a_record_that_its_file_does_not_hold_is_refused(
    server: Server, refused: Refused, size: int, offset: int
) -> None:
    front = negotiated(server)
    _, fd = new_record(server, front)
    refused(front, Message.SET_INFLIGHT_FD, wire.inflight(size, offset, 1, 64), [fd])


def test_a_record_that_is_no_file_is_refused(server: Server, refused: Refused) -> None:
    fd = server.eventfd()
    refused(negotiated(server), Message.SET_INFLIGHT_FD, wire.inflight(OF_ONE, 0, 1, 64), [fd])


# I04


@pytest.mark.parametrize("count", [0, 2])
def test_a_record_comes_with_one_descriptor(server: Server, refused: Refused, count: int) -> None:
    front = negotiated(server)
    payload, fd = new_record(server, front)
    refused(front, Message.SET_INFLIGHT_FD, payload, [fd] * count)


def test_a_request_for_a_record_brings_no_descriptor(server: Server) -> None:
    front = negotiated(server)
    fds = [server.memfd()]
    wanted = wire.inflight(0, 0, 1, 64)
    assert front.channel.ask(Message.GET_INFLIGHT_FD, wanted, fds) == bytes(24)
    assert front.lives()


# I05 and I07


class Marked:
    """Three reads that the driver has made available and a record has in flight."""

    def __init__(self, server: Server) -> None:
        self.front = negotiated(server).share_memory()
        ring = self.front.add_ring(0, RING_SIZE)
        disk = self.front.blk()
        self.reads = [disk.prepare(Type.IN, 0, room=512) for _ in range(3)]
        self.heads = [disk.submit(read) for read in self.reads]
        self.payload, self.fd = new_record(server, self.front)
        for at, value in [(8, 1), (10, ring.size), (12, 0), (14, 0)]:
            set_word(self.fd, at, value)
        for number, head in enumerate(self.heads):
            os.pwrite(self.fd, struct.pack("<BxxxxxHQ", 1, 0, number), 16 + 16 * head)

    def start(self) -> None:
        """What a front-end does that comes back after a crash. The second queue has no record."""
        self.front.change(Message.SET_INFLIGHT_FD, self.payload, [self.fd])
        self.front.start_ring()
        self.front.start_ring(1)


def test_what_a_record_has_in_flight_is_carried_out_in_its_order(server: Server) -> None:
    marked = Marked(server)
    for number, head in zip([7, 5, 6], marked.heads, strict=True):
        os.pwrite(marked.fd, struct.pack("<Q", number), 16 + 16 * head + 8)
    marked.start()
    used = marked.front.rings[0].wait(3)
    first, second, third = marked.heads
    assert [one.head for one in used] == [second, third, first]
    assert all(marked.front.blk().result(read).status == Status.OK for read in marked.reads)


def version(fd: int) -> None:
    set_word(fd, 8, 7)


def entries(fd: int) -> None:
    set_word(fd, 10, 65535)


def far_used_index(fd: int) -> None:
    set_word(fd, 14, 40000)


def last_head(fd: int) -> None:
    set_word(fd, 14, 65535)
    set_word(fd, 12, 65535)


def loop(fd: int) -> None:
    set_word(fd, 14, 65534)
    set_word(fd, 12, 1)
    set_word(fd, 16 + 16 + 6, 1)


def all_in_flight(fd: int) -> None:
    for entry in range(RING_SIZE):
        os.pwrite(fd, b"\1", 16 + 16 * entry)


def everything(fd: int) -> None:
    for spoil in (all_in_flight, loop, last_head, entries, version):
        spoil(fd)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (version, "version 7, not 1"),
        (entries, "it is of 65535 entries, the ring has 256"),
        (far_used_index, "used index 40000, and the ring of 256 entries stands at 0"),
        (last_head, "a wrong link to entry 65535 of 256"),
        (loop, "a wrong link to entry 1 of 256"),
        (all_in_flight, "256 requests in flight, of 3 that are available and not used"),
        (everything, "version 7, not 1"),
    ],
)
def test_a_record_with_nonsense_in_a_field_breaks_its_queue(
    server: Server, spoil: Callable[[int], None], words: str
) -> None:
    marked = Marked(server)
    spoil(marked.fd)
    marked.start()
    front, ring = marked.front, marked.front.rings[0]
    assert ring.is_broken()
    assert ring.used_index == 0
    assert all(front.memory.read(read.status, 1)[0] == CANARY for read in marked.reads)
    assert front.blk(1).read(0, 512).status == Status.OK
    server.assert_logs(
        "queue 0 is broken: the record of requests in flight (SET_INFLIGHT_FD) is not this ring's: "
        + words
    )
    # A new record brings it back, as a front-end asks for it when its driver starts anew.
    front.stop_ring(0)
    front.stop_ring(1)
    payload, fd = new_record(server, front)
    front.change(Message.SET_INFLIGHT_FD, payload, [fd])
    front.start_ring()
    assert len(ring.wait(3)) == 3


def test_a_record_of_noise_never_reaches_beyond_itself(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """40 turns; with VHOST_USER_SOAK=1, 10,000. It is followed as far as it makes sense, or breaks
    its queue: the account that is taken after each test is all that counts.
    """
    chance = random.Random(5)
    for _ in range(turns(40, 10_000)):
        marked = Marked(server)
        noise = bytearray(chance.randbytes(16 + 16 * RING_SIZE))
        if chance.random() < 0.8:
            noise[8:12] = struct.pack("<HH", 1, RING_SIZE)
        if chance.random() < 0.8:
            noise[14:16] = struct.pack("<H", -chance.randrange(RING_SIZE) & 0xFFFF)
        for entry in range(RING_SIZE):
            noise[16 + 16 * entry] = chance.random() < 0.01
        os.pwrite(marked.fd, noise, 0)
        marked.start()
        assert marked.front.lives()
        marked.front.close()


# I06: see `test_a_fresh_record_at_a_used_index_that_is_not_0` in tests/python/test_recovery.py.
