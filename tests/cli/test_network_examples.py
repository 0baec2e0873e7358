"""The network devices among the examples, down to the byte."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.net import ECHO, IS_AT, REPLY, WHO_HAS, NetDriver
from vhost_user.examples.echo import MRG_RXBUF, Echo
from vhost_user.examples.ping import Ping, echo_reply

HOST = "10.0.0.1"
SENT = bytes(12)
IN_ONE = bytes.fromhex("0000000000000000 0000 0100")
IN_THREE = bytes.fromhex("0000000000000000 0000 0300")
"""Headers of packets in one buffer and in three."""


@contextmanager
def served(device: vu.Device, *, never: int = 0) -> Iterator[FrontEnd]:
    """A front-end with all queues of ``device`` running; ``never``: features not to accept."""
    with (
        vu.Backend(device, socket="n.sock", on_error="raise"),
        FrontEnd.connect("n.sock").start(device.num_queues, never=never) as front,
    ):
        yield front


def driver(front: FrontEnd, pair: int = 0) -> NetDriver:
    return NetDriver(front.memory, front.rings[2 * pair], front.rings[2 * pair + 1])


class Ready(Ping):
    """Tells when it has buffers: the thread of queue 1 may be quicker than that of queue 0."""

    def __init__(self) -> None:
        super().__init__(HOST)
        self.has_buffers = threading.Event()

    def on_buffers(self, queue: vu.Queue) -> None:
        self.has_buffers.set()


def test_ping_answers_who_asks_for_it_and_nobody_else() -> None:
    device = Ready()
    with served(device) as front:
        net = driver(front)
        net.post(1526, 1526)
        assert device.has_buffers.wait(5)
        net.send(SENT + WHO_HAS, SENT + WHO_HAS[:-1] + b"\3", b"\0", b"\xff" * 600, SENT + ECHO)
        net.wait_taken(5)
        assert net.receive() == (IN_ONE, [IS_AT])
        assert net.receive() == (IN_ONE, [REPLY])


def test_ping_drops_what_finds_no_buffer_or_one_too_small() -> None:
    device = Ready()
    with served(device) as front:
        net = driver(front)
        net.send(SENT + WHO_HAS)
        net.wait_taken(1)
        net.post(53)
        assert device.has_buffers.wait(5)
        net.send(SENT + WHO_HAS)  # the answer has 54 bytes
        net.wait_taken(1)
        net.post(1526)
        assert front.stop_ring(0) == 0
        assert front.lives()


def test_echo_keeps_what_finds_no_buffer() -> None:
    frames = [bytes([number]) * (60 + number) for number in range(5)]
    with served(Echo()) as front:
        net = driver(front)
        net.send(*(SENT + frame for frame in frames))
        net.post(1526, 1526)
        assert [net.receive() for _ in range(2)] == [(IN_ONE, [frame]) for frame in frames[:2]]
        net.post(1526, 1526, 1526)
        assert [net.receive() for _ in range(3)] == [(IN_ONE, [frame]) for frame in frames[2:]]
        net.wait_taken(5)


def test_echo_spreads_a_packet_over_buffers_if_the_driver_takes_that() -> None:
    frame = bytes(range(250))
    with served(Echo()) as front:
        net = driver(front)
        net.post(100, 100)
        net.send(SENT + frame, SENT + ECHO)
        net.post(100, 100)
        assert net.receive() == (IN_THREE, [frame[:88], frame[88:188], frame[188:]])
        assert net.receive() == (IN_ONE, [ECHO])


def test_echo_drops_what_no_buffer_can_hold() -> None:
    with served(Echo(), never=MRG_RXBUF) as front:
        net = driver(front)
        net.post(100, 100)
        net.send(SENT + bytes(89), SENT + bytes(88))
        assert net.receive() == (IN_ONE, [bytes(88)])
        net.wait_taken(2)


def test_echo_answers_on_the_pair_that_was_sent_on() -> None:
    with served(Echo(3)) as front:
        nets = [driver(front, pair) for pair in range(3)]
        for pair, net in enumerate(nets):
            net.post(1526)
            net.send(SENT + bytes([pair]) * 60)
        for pair, net in enumerate(nets):
            assert net.receive() == (IN_ONE, [bytes([pair]) * 60])


class Full(Echo):
    """Tells when it keeps three packets."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps_three = threading.Event()

    def on_queue(self, queue: vu.Queue) -> None:
        super().on_queue(queue)
        if len(self.waiting[0]) == 3:
            self.keeps_three.set()


def test_echo_lets_go_of_what_it_keeps_when_a_queue_stops() -> None:
    device = Full()
    with served(device) as front:
        net = driver(front)
        net.send(*[SENT + ECHO] * 3)
        assert device.keeps_three.wait(5)
        assert front.stop_ring(1) == 3
        net.wait_taken(3)
        net.post(1526)
        front.start_ring(1, base=3)
        net.send(SENT + WHO_HAS)
        assert net.receive() == (IN_ONE, [WHO_HAS])


def test_what_is_asked_is_answered() -> None:
    assert Ping(HOST).answer(WHO_HAS) == IS_AT
    assert Ping(HOST).answer(ECHO) == REPLY
    assert Ping(HOST).answer(ECHO + b"padding") == REPLY
    assert Ping("10.0.0.3").answer(WHO_HAS) == b""
    assert Ping("10.0.0.3").answer(ECHO) == b""


def test_a_checksum_that_overflows_is_carried_around() -> None:
    # 0xff00 + 0x0800 = 0x10700, and the carry makes 0x0701, the complement of 0xf8fe.
    assert echo_reply(bytes.fromhex("0800 ff00 f8fe 0000")) == bytes.fromhex("0000 0701 f8fe 0000")


@pytest.mark.parametrize("field", ["2000", "0001"], ids=["more to come", "not from the beginning"])
def test_a_packet_in_fragments_is_dropped(field: str) -> None:
    frame = ECHO[:20] + bytes.fromhex(field) + ECHO[22:]
    assert Ping(HOST).answer(frame) == b""


@pytest.mark.parametrize("frame", [WHO_HAS, ECHO], ids=["who has", "echo"])
def test_a_frame_that_is_cut_short_is_dropped(frame: bytes) -> None:
    for length in range(len(frame)):
        assert Ping(HOST).answer(frame[:length]) == b""


@pytest.mark.parametrize("frame", [WHO_HAS, ECHO], ids=["who has", "echo"])
def test_whatever_a_frame_says_nothing_is_raised(frame: bytes) -> None:
    for place in range(len(frame)):
        for value in range(256):
            Ping(HOST).answer(frame[:place] + bytes([value]) + frame[place + 1 :])
