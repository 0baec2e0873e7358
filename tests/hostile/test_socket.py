"""The socket under attack: framing, descriptors, peers that stall, vanish or crowd."""

import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Flag, ProtocolFeature, Request
from peer.patience import PATIENCE
from peer.process import cpu_seconds, eventually, private_kib

from .conftest import Refused
from .handshake import ASK, Step, handshake
from .server import Server

MESSAGE_DEADLINE = 5.0
"""Seconds from a message's first byte after which a half message ends the connection."""
KIB = 1024
TGKILL = 234 if os.uname().machine == "x86_64" else 131


def play(front: FrontEnd, steps: list[Step], send: Callable[[Step], None]) -> None:
    """Sends each step and reads its answer, then proves that the ring runs."""
    for step in steps:
        send(step)
        if step.answer:
            front.channel.receive()
    assert front.blk().read(0, 512).status == 0


def test_a_message_in_two_pieces_is_read_whole_wherever_it_is_cut(server: Server) -> None:
    front = server.connect().negotiate()
    data = wire.frame(Request.SET_MEM_TABLE, front.memory.table(), ASK)
    for cut in range(1, len(data)):
        front.channel.send(data[:cut], front.memory.fds)
        assert eventually(front.channel.is_taken), f"the first {cut} bytes are left in the socket"
        front.channel.send(data[cut:])
        assert front.channel.answer_to(Request.SET_MEM_TABLE) == bytes(8)


def test_a_handshake_in_single_bytes_works(server: Server) -> None:
    front, steps = handshake(server)

    def send(step: Step) -> None:
        for at in range(len(step.data)):
            front.channel.send(step.data[at : at + 1], step.fds if at == 0 else None)
            eventually(front.channel.is_taken, 1.0)

    play(front, steps, send)


def test_a_handshake_with_header_and_payload_apart_works(server: Server) -> None:
    front, steps = handshake(server)
    play(front, steps, lambda step: front.channel.send_pieces(step.data, [12], step.fds))


def test_a_handshake_with_an_empty_control_message_on_each_frame_works(server: Server) -> None:
    front, steps = handshake(server)
    play(front, steps, lambda step: front.channel.send(step.data, step.fds))


def test_frames_sent_together_are_read_one_by_one(server: Server) -> None:
    front, steps = handshake(server)
    together = b""
    expected = 0
    for step in steps:
        if step.fds:  # descriptors belong to the frame whose first byte they came with
            front.channel.send(together)
            front.channel.send(step.data, step.fds)
            together = b""
        else:
            together += step.data
        expected += 1 if step.answer else 0
    front.channel.send(together)
    answers = [front.channel.receive() for _ in range(expected)]
    assert {answer.flags for answer in answers} == {Flag.VERSION | Flag.REPLY}
    assert front.blk().read(0, 512).status == 0


@pytest.mark.parametrize(
    "half",
    [wire.frame(Request.GET_FEATURES)[:5], wire.frame(Request.SET_FEATURES, bytes(8))[:12]],
    ids=["header", "payload"],
)
def test_a_half_message_is_dropped_after_the_deadline(server: Server, half: bytes) -> None:
    """Sixty-four peers stall; the other device answers meanwhile, and a good one gets through."""
    stalled = [server.channel() for _ in range(64)]
    for channel in stalled:
        channel.send(half)
    server.check_witness()
    assert stalled[0].is_closed(MESSAGE_DEADLINE * 2)
    server.check_witness()
    server.hang_up()
    assert server.connect().negotiate().lives()


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x1_0000, 0x1001])
def test_an_oversized_payload_is_dropped_and_nothing_is_allocated(
    server: Server, size: int
) -> None:
    server.connect().negotiate()
    server.hang_up()
    before = private_kib(server.pid)
    channel = server.channel()
    channel.send(wire.HEADER.pack(Request.SET_MEM_TABLE, Flag.VERSION, size))
    assert channel.is_closed()
    assert private_kib(server.pid) - before < KIB


@pytest.mark.parametrize("flags", [0x0, 0x2, 0x3, 0x5, 0xD], ids=hex)
def test_a_wrong_version_or_a_reply_is_dropped(server: Server, flags: int) -> None:
    channel = server.channel()
    channel.send(wire.HEADER.pack(Request.GET_FEATURES, flags, 0))
    assert channel.is_closed()


@pytest.mark.parametrize("number", [0, 46, 100, 0x7FFF_FFFF, 0xFFFF_FFFF], ids=hex)
def test_an_unknown_request_is_refused(server: Server, refused: Refused, number: int) -> None:
    front = server.connect().negotiate()
    refused(front, number, bytes(8), [server.memfd(), server.memfd()])


@pytest.mark.parametrize("surplus", [1, 24])
def test_a_memory_table_with_more_descriptors_than_regions_is_refused(
    server: Server, refused: Refused, surplus: int
) -> None:
    front = server.connect().negotiate()
    regions = [wire.region(n << 20, 4096, n << 20, 0) for n in range(8)]
    fds = [server.memfd() for _ in range(8 + surplus)]
    refused(front, Request.SET_MEM_TABLE, wire.memory_table(regions), fds)


@pytest.mark.parametrize("count", [33, 253])
def test_more_descriptors_than_a_message_may_carry_are_dropped_and_closed(
    server: Server, count: int
) -> None:
    front = server.connect().negotiate()
    table = wire.memory_table([wire.region(0, 4096, 0, 0)])
    fds = [server.memfd()] * count
    front.channel.send(wire.frame(Request.SET_MEM_TABLE, table, ASK), fds)
    assert front.channel.is_closed()


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.GET_FEATURES, b""),
        (Request.SET_VRING_NUM, wire.state(0, 64)),
        (Request.GET_INFLIGHT_FD, wire.inflight(0, 0, 1, 64)),
    ],
)
def test_descriptors_on_a_message_that_takes_none_are_closed(
    server: Server, turns: Callable[[int, int], int], request_: Request, payload: bytes
) -> None:
    """600 turns; with VHOST_USER_SOAK=1, 100,000."""
    fds = [server.memfd() for _ in range(8)]
    front = None
    for turn in range(turns(600, 100_000)):
        if front is None:
            front = FrontEnd.connect(server.path()).negotiate()
        front.channel.send(wire.frame(request_, payload, ASK), fds[: turn % 8 + 1])
        try:
            front.channel.answer_to(request_)
        except wire.Closed:
            front.close()
            front = None
    if front:
        front.close()


def test_an_acknowledgement_is_sent_once_though_it_was_never_negotiated(server: Server) -> None:
    """QEMU asks so for IOTLB_MSG and POSTCOPY_LISTEN, and waits."""
    channel = server.channel()
    channel.send(wire.frame(Request.SET_OWNER, b"", ASK))
    assert channel.answer_to(Request.SET_OWNER) == bytes(8)
    assert channel.ask_u64(Request.GET_FEATURES)
    assert channel.silent()


def leave_by_close(channel: wire.Channel) -> None:
    channel.close()


def leave_by_shutdown(channel: wire.Channel) -> None:
    channel.socket.shutdown(socket.SHUT_WR)
    while channel.socket.recv(4096):
        pass
    channel.close()


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_shutdown])
def test_a_peer_may_vanish_at_any_byte_of_a_handshake(
    server: Server, leave: Callable[[wire.Channel], None]
) -> None:
    front, steps = handshake(server)
    front.channel.close()
    for whole in range(len(steps)):
        for part in range(len(steps[whole].data)):
            channel = wire.Channel.connect(server.path())
            for step in steps[:whole]:
                channel.send(step.data, step.fds)
            if part:
                channel.send(steps[whole].data[:part], steps[whole].fds)
            leave(channel)
    server.check_witness()


def test_a_half_message_changes_nothing(server: Server) -> None:
    front = server.started()
    front.channel.send(wire.frame(Request.RESET_DEVICE)[:11])
    assert eventually(front.channel.is_taken)
    assert front.blk().read(0, 512).status == 0


def test_a_storm_of_connections_leaves_nothing_behind(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """500 connections one after the other; with VHOST_USER_SOAK=1, 10,000."""
    wire.Channel.connect(server.path()).close()
    assert not server.settled()
    before = private_kib(server.pid)
    for _ in range(turns(500, 10_000)):
        wire.Channel.connect(server.path()).close()
    assert server.connect().negotiate().lives()
    server.check_witness()
    assert private_kib(server.pid) - before < KIB


def test_a_crowd_of_connections_is_turned_over(server: Server) -> None:
    """A thousand peers dial at once: as many as the listen queue takes get in, then all leave."""
    crowd = []
    for _ in range(1000):
        peer = server.track(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            peer.connect(server.path())
        crowd.append(peer)
    server.check_witness()
    server.hang_up()
    assert server.connect().negotiate().lives()


def test_a_second_front_end_waits_and_does_not_disturb_the_first(server: Server) -> None:
    first = server.started()
    second = server.channel()
    second.command(Request.GET_FEATURES)
    assert first.blk().read(0, 512).status == 0
    assert second.silent()
    first.channel.close()
    assert second.answer_to(Request.GET_FEATURES)


def test_a_replaced_back_end_channel_is_closed(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """200 channels; with VHOST_USER_SOAK=1, 1,000."""
    front = server.connect().negotiate()
    assert front.protocol & ProtocolFeature.BACKEND_REQ
    former = None
    for _ in range(turns(200, 1000)):
        ours, theirs = socket.socketpair()
        front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        theirs.close()
        if former:
            former.settimeout(PATIENCE)
            assert former.recv(1) == b""
            former.close()
        former = server.track(ours)


@pytest.mark.parametrize("kind", ["memfd", "null", "eventfd"])
def test_a_back_end_channel_that_is_no_socket_is_refused(
    server: Server, refused: Refused, kind: str
) -> None:
    makers = {
        "memfd": server.memfd,
        "null": lambda: server.own(os.open("/dev/null", os.O_RDWR)),
        "eventfd": server.eventfd,
    }
    refused(server.connect().negotiate(), Request.SET_BACKEND_REQ_FD, b"", [makers[kind]()])


class SignalStorm:
    """Interrupts every thread of a process about a thousand times a second."""

    def __init__(self, pid: int, signal: int) -> None:
        self._pid = pid
        self._signal = signal
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        while not self._done.wait(0.001):
            for thread in os.listdir(f"/proc/{self._pid}/task"):
                libc.syscall(TGKILL, self._pid, int(thread), self._signal)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_interrupted_calls_disturb_neither_messages_nor_requests(server: Server) -> None:
    signal = server.ask("handle_signals")
    with SignalStorm(server.pid, signal):
        for _ in range(5):
            front = server.started()
            disk = front.blk()
            for sector in range(40):
                data = bytes([sector]) * 4096
                assert disk.write(sector * 8, data).status == 0
                assert disk.read(sector * 8, 4096).data == data
            server.hang_up()


def test_a_waiting_back_end_uses_no_processor(server: Server) -> None:
    """Idle, with a running ring, and with a half message in the socket."""
    front = server.started()
    for half in (b"", wire.frame(Request.GET_FEATURES)[:5]):
        front.channel.send(half)
        before = cpu_seconds(server.pid)
        time.sleep(1.0)  # the span that is measured, not a synchronisation
        assert cpu_seconds(server.pid) - before < 0.05
