"""Translations that lie, that come without end, or never; and a back-end channel that is abused."""

import contextlib
import socket
import struct
from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import Type
from peer.front_end import FrontEnd
from peer.memory import PAGE
from peer.numbers import Feature, Flag, Request
from peer.process import private_kib
from peer.ring import Segment

from .conftest import Refused
from .server import Server

ENTRY = struct.Struct("=QQQBB6x")
"""First I/O virtual address, bytes, user address, access (1 read, 2 write), type."""
MISS, UPDATE, INVALIDATE, ACCESS_FAIL = 1, 2, 3, 4
ALL = (1 << 64) - 1
MEMORY = 16 << 20
MISS_NUMBER, CONFIG_CHANGE = 1, 2


def _entry(iova: int, size: int, user: int, access: int, kind: int) -> bytes:
    return ENTRY.pack(iova, size, user, access, kind)


def _negotiated(server: Server) -> FrontEnd:
    return server.connect().negotiate(also=Feature.ACCESS_PLATFORM)


def _behind(server: Server, *, told: bool = True) -> tuple[FrontEnd, socket.socket]:
    """Two running rings by I/O virtual addresses, which are the guest's own; with ``told`` the
    first half of memory is translated."""
    front = _negotiated(server).share_memory()
    ours, theirs = socket.socketpair()
    server.track(ours)
    with theirs:
        front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    if told:
        _update(front, 0, MEMORY // 2)
    for index in range(2):
        places = front.add_ring(index).places
        front.change(Request.SET_VRING_NUM, wire.state(index, front.rings[index].size))
        front.change(Request.SET_VRING_BASE, wire.state(index, 0))
        lies = {
            "descriptors": places.descriptors,
            "used": places.used,
            "available": places.available,
        }
        front.change(Request.SET_VRING_ADDR, front.addresses(index, **lies))
        front.hand_over_events(index)
        front.enable(index)
    return front, ours


def _update(front: FrontEnd, iova: int, size: int) -> None:
    _change(front, _entry(iova, size, front.memory.user(iova), 3, UPDATE))


def _change(front: FrontEnd, payload: bytes) -> None:
    """It has an answer of its own."""
    assert front.channel.ask(Request.IOTLB_MSG, payload) == wire.u64(0)


def _ask_for_untranslated(front: FrontEnd, index: int = 0) -> None:
    """A read whose data lie where nothing is translated."""
    blk = front.blk(index)
    request = blk.prepare(Type.IN, 0, room=512)
    chain = request.chain()
    data = Segment(MEMORY - PAGE, 512, writable=True)
    front.rings[index].add([chain[0], data, chain[-1]])
    front.rings[index].kick()


def _question(channel: socket.socket) -> tuple[int, int, int]:
    """The address, the access and the type of the next question."""
    channel.settimeout(10)
    number = CONFIG_CHANGE
    while number == CONFIG_CHANGE:
        header = channel.recv(12, socket.MSG_WAITALL)
        number, flags, size = struct.unpack("=III", header)
    assert (number, flags, size) == (MISS_NUMBER, Flag.VERSION | Flag.NEED_REPLY, ENTRY.size)
    iova, _, _, access, kind = ENTRY.unpack(channel.recv(size, socket.MSG_WAITALL))
    return iova, access, kind


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(_entry(0, 0, 0, 3, UPDATE), id="empty"),
        pytest.param(_entry(ALL, 2, 0, 3, UPDATE), id="addresses wrap"),
        pytest.param(_entry(0, 2, ALL, 3, UPDATE), id="place wraps"),
        pytest.param(_entry(0, PAGE, 0, 0, UPDATE), id="nothing allowed"),
        pytest.param(_entry(0, PAGE, 0, 4, UPDATE), id="unknown access"),
        pytest.param(_entry(0, PAGE, 1, 3, UPDATE), id="place outside memory"),
        pytest.param(_entry(PAGE, 0, 0, 0, INVALIDATE), id="empty invalidation"),
        pytest.param(_entry(PAGE, ALL, 0, 0, INVALIDATE), id="invalidation wraps"),
        pytest.param(_entry(0, PAGE, 0, 1, MISS), id="miss of a front-end"),
        pytest.param(_entry(0, PAGE, 0, 1, ACCESS_FAIL), id="access failure of a front-end"),
        pytest.param(_entry(0, PAGE, 0, 1, 0), id="no type"),
        pytest.param(_entry(0, PAGE, 0, 1, 255), id="unknown type"),
        pytest.param(bytes(31), id="short"),
        pytest.param(bytes(33), id="long"),
    ],
)
def test_a_translation_that_cannot_be_is_refused(server: Server, payload: bytes) -> None:
    front = _negotiated(server).share_memory()
    for flags in (Flag.VERSION, Flag.VERSION | Flag.NEED_REPLY):
        front.channel.send(wire.frame(Request.IOTLB_MSG, payload, flags))
        assert front.channel.answer_to(Request.IOTLB_MSG) == wire.u64(1)
    assert front.lives()


def test_a_translation_with_a_descriptor_is_refused(server: Server) -> None:
    front = _negotiated(server).share_memory()
    payload = _entry(0, PAGE, front.memory.user(0), 3, UPDATE)
    front.channel.command(Request.IOTLB_MSG, payload, [server.memfd()])
    assert front.channel.answer_to(Request.IOTLB_MSG) == wire.u64(1)
    assert front.lives()


def test_a_translation_without_the_feature_is_refused(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    payload = _entry(0, PAGE, front.memory.user(0), 3, UPDATE)
    assert front.channel.ask(Request.IOTLB_MSG, payload) == wire.u64(1)
    assert front.lives()


def test_a_ring_whose_translations_cannot_be_asked_for_is_refused(
    server: Server, refused: Refused
) -> None:
    protocol = 0x1_8201  # MQ, CONFIG, CONFIGURE_MEM_SLOTS, STATUS
    front = server.connect().negotiate(also=Feature.ACCESS_PLATFORM, protocol=protocol)
    front.share_memory().add_ring()
    front.configure_ring()
    refused(front, Request.SET_VRING_KICK, wire.u64(0), [front.rings[0].kick_fd])


def test_translations_without_end_take_no_more_than_their_table(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """Each of another page, so that none takes the place of another."""
    front, _channel = _behind(server)
    user = front.memory.user(0)
    count = turns(20_000, 1_000_000)
    burst = 500
    for first in range(0, count, burst):
        updates = (
            _entry((1 << 40) + 2 * PAGE * number, PAGE, user, 3, UPDATE)
            for number in range(first, first + burst)
        )
        front.channel.send(b"".join(wire.frame(Request.IOTLB_MSG, each) for each in updates))
        for _ in range(burst):
            assert front.channel.answer_to(Request.IOTLB_MSG) == wire.u64(0)
    assert private_kib(server.pid) - server.private_kib_before < 16 << 10
    assert front.blk().read(0, 512).status == 0
    _change(front, _entry(0, ALL, 0, 0, INVALIDATE))


def test_a_front_end_that_reads_no_question_holds_up_its_own_queue_alone(server: Server) -> None:
    front, _channel = _behind(server)
    _ask_for_untranslated(front)
    for sector in range(100):
        assert front.blk(1).read(sector, 512).status == 0
    assert front.rings[0].used_index == 0
    assert front.stop_ring(0) == 0, "the request stays in the ring"
    assert front.blk(1).read(0, 512).status == 0


def test_a_question_says_which_page_and_what_for(server: Server) -> None:
    front, channel = _behind(server)
    _ask_for_untranslated(front)
    assert _question(channel) == (MEMORY - PAGE, 2, MISS)
    _update(front, MEMORY - PAGE, PAGE)
    channel.sendall(wire.frame(MISS_NUMBER, wire.u64(0), Flag.VERSION | Flag.REPLY))
    [used] = front.rings[0].wait()
    assert used.length == 513


def test_a_question_that_is_answered_with_an_error_fails_its_request(server: Server) -> None:
    front, channel = _behind(server)
    _ask_for_untranslated(front)
    _question(channel)
    channel.sendall(wire.frame(MISS_NUMBER, wire.u64(1), Flag.VERSION | Flag.REPLY))
    [used] = front.rings[0].wait()
    assert used.length == 1, "the status alone was written"
    server.assert_logs("the front-end has no translation that allows it")
    assert front.blk().read(0, 512).status == 0


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(wire.frame(MISS_NUMBER, wire.u64(0), Flag.VERSION), id="no answer"),
        pytest.param(wire.frame(2, wire.u64(0), Flag.VERSION | Flag.REPLY), id="of another"),
        pytest.param(wire.frame(1, b"", Flag.VERSION | Flag.REPLY), id="without a code"),
        pytest.param(bytes(12), id="zeroes"),
        pytest.param(b"\xff" * 64, id="ones"),
    ],
)
def test_what_is_no_answer_ends_the_channel_and_nothing_else(server: Server, junk: bytes) -> None:
    before = len(server.log())
    front, channel = _behind(server)
    _ask_for_untranslated(front)
    _question(channel)
    channel.sendall(junk)
    server.assert_logs("the back-end channel is closed: ", after=before)
    with contextlib.suppress(ConnectionResetError):
        assert channel.recv(1) == b""
    assert front.blk(1).read(0, 512).status == 0
    # Another channel is asked once more.
    ours, theirs = socket.socketpair()
    server.track(ours)
    with theirs:
        front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    assert _question(ours) == (MEMORY - PAGE, 2, MISS)


def test_half_an_answer_is_waited_for_by_nobody(server: Server) -> None:
    front, channel = _behind(server)
    _ask_for_untranslated(front)
    _question(channel)
    answer = wire.frame(MISS_NUMBER, wire.u64(1), Flag.VERSION | Flag.REPLY)
    for place in range(len(answer) - 1):
        channel.sendall(answer[place : place + 1])
        assert front.lives()
        assert front.blk(1).read(0, 512).status == 0
    assert front.rings[0].used_index == 0
    channel.sendall(answer[-1:])
    front.rings[0].wait()


def test_answers_to_questions_that_were_not_asked_change_nothing(server: Server) -> None:
    front, channel = _behind(server)
    _ask_for_untranslated(front)
    _question(channel)
    answer = wire.frame(MISS_NUMBER, wire.u64(1), Flag.VERSION | Flag.REPLY)
    channel.setblocking(False)
    sent = 0
    while sent < 1000:
        try:
            channel.send(answer)
            sent += 1
        except BlockingIOError:
            assert front.lives()
    assert front.rings[0].wait()[0].length == 1
    for sector in range(20):
        assert front.blk(sector % 2).read(sector, 512).status == 0


def test_descriptors_on_the_channel_are_closed(server: Server) -> None:
    front, channel = _behind(server)
    _ask_for_untranslated(front)
    _question(channel)
    answer = wire.frame(MISS_NUMBER, wire.u64(1), Flag.VERSION | Flag.REPLY)
    socket.send_fds(channel, [answer], [server.memfd() for _ in range(8)])
    front.rings[0].wait()
    assert front.lives()


def test_a_ring_whose_own_memory_is_not_translated_breaks(server: Server) -> None:
    before = len(server.log())
    front, channel = _behind(server, told=False)
    answer = wire.frame(MISS_NUMBER, wire.u64(1), Flag.VERSION | Flag.REPLY)
    for _ in front.rings:
        iova, _, _ = _question(channel)
        assert iova < MEMORY
        channel.sendall(answer)
    server.assert_logs("queue 0 is broken: the ", "queue 1 is broken: the ", after=before)
    assert all(ring.is_broken() for ring in front.rings.values())
    assert front.lives()
