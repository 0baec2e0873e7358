"""Front-ends that do not read what they are sent."""

import contextlib
import socket

import pytest
from peer import wire
from peer.numbers import BackendRequest, Flag, ProtocolFeature, Request
from peer.process import eventually

from .server import SIZE, Server


def send_until_full(channel: wire.Channel, frame: bytes) -> None:
    """Sends questions whose answers nobody reads, until the socket takes no more."""
    channel.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while True:
            channel.socket.sendall(frame * 64)


def test_a_front_end_that_reads_no_answer_holds_up_nobody_else(server: Server) -> None:
    channel = server.channel()
    send_until_full(channel, wire.frame(Request.GET_FEATURES))
    server.check_witness()
    server.hang_up()
    server.check_victim()


def test_a_front_end_that_reads_no_answer_is_dropped_in_the_end(server: Server) -> None:
    stubborn = server.channel()
    send_until_full(stubborn, wire.frame(Request.GET_FEATURES))
    server.check_victim()


@pytest.mark.victim("ram", num_queues=1)
def test_a_back_end_channel_that_is_never_read_holds_nothing_up(server: Server) -> None:
    """Two thousand changes of the configuration, each announced in a socket that fills up."""
    front = server.started()
    ours, theirs = socket.socketpair()
    server.track(ours)
    server.track(theirs)
    front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    for turn in range(2000):
        server.ask("resize", SIZE - 512 * (turn % 2))
    assert front.lives()
    assert front.blk().read(0, 512).status == 0
    server.ask("resize", SIZE)


@pytest.mark.victim("ram", num_queues=1)
def test_a_back_end_channel_without_a_peer_holds_nothing_up(server: Server) -> None:
    front = server.started()
    ours, theirs = socket.socketpair()
    front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    ours.close()
    theirs.close()
    for _ in range(5):
        server.ask("resize", SIZE)
    assert front.lives()


@pytest.mark.victim("ram", num_queues=1)
def test_a_resize_is_announced_and_shows_in_the_configuration(server: Server) -> None:
    front = server.started()
    assert front.protocol & ProtocolFeature.BACKEND_REQ
    ours, theirs = socket.socketpair()
    back = server.track(wire.Channel(ours))
    front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    theirs.close()
    server.ask("resize", SIZE // 2)
    message = back.receive()
    assert (message.request, message.payload) == (BackendRequest.CONFIG_CHANGE_MSG, b"")
    assert message.flags & ~Flag.NEED_REPLY == Flag.VERSION
    if message.flags & Flag.NEED_REPLY:
        back.send(wire.frame(message.request, wire.u64(0), Flag.VERSION | Flag.REPLY))
    answer = front.channel.ask(Request.GET_CONFIG, wire.config(0, 8, bytes(8)))
    assert answer[12:] == (SIZE // 2 // 512).to_bytes(8, "little")
    assert front.blk().read(SIZE // 2 // 512, 512).status == 1
    server.ask("resize", SIZE)
    assert eventually(lambda: not back.silent())
