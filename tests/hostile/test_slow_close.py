"""Descriptors whose last `close` waits: for a server of files, or for a peer that takes no data."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Flag, Request
from peer.process import asleep

from .fuse import SlowFiles
from .server import Server

MOST_UNCLOSED = 64
"""Descriptors that a front-end may leave unclosed: rust/core/src/sys/closer.rs."""


def lingering(server: Server) -> socket.socket:
    """A socket whose last `close` waits an hour for its peer, or until the test ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        server.track(listener.accept()[0])
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    return ours


def filled_with_one(server: Server) -> socket.socket:
    """A Unix socket with a lingering one in its queue, which goes when it does."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(lingering(server)) as inside:
        socket.send_fds(theirs, [b"x"], [inside.fileno()])
    server.track(theirs)
    return ours


def is_refused(
    server: Server, front: FrontEnd, request: Request, payload: bytes, passed: list[socket.socket]
) -> bool:
    """Passes sockets that nobody else has any more when the server looks at them."""
    with asleep(server.pid):
        message = wire.frame(request, payload, Flag.VERSION | Flag.NEED_REPLY)
        front.channel.send(message, [each.fileno() for each in passed])
        for each in passed:
            each.close()
    return front.channel.answer_to(request) != wire.u64(0)


REFUSED = [
    (Request.SET_VRING_CALL, wire.u64(0)),
    (Request.SET_VRING_ERR, wire.u64(0)),
    (Request.SET_VRING_KICK, wire.u64(0)),
    (Request.SET_BACKEND_REQ_FD, b""),
    (Request.SET_VRING_NUM, wire.state(0, 64)),
    (Request.SET_MEM_TABLE, wire.memory_table([wire.region(0, 4096, 0, 0)])),
]
"""Messages with a descriptor: of a wrong kind, or one that the message does not take."""


@pytest.mark.parametrize(("request_", "payload"), REFUSED)
def test_a_socket_that_lingers_is_refused_and_holds_nothing_up(
    server: Server, request_: Request, payload: bytes
) -> None:
    front = server.started()
    for _ in range(3):
        assert is_refused(server, front, request_, payload, [lingering(server)])
    assert front.blk().read(0, 512).status == 0
    assert front.stop_ring() == 1


@pytest.mark.parametrize("request_", ["SET_VRING_CALL", "SET_VRING_ERR", "SET_VRING_KICK"])
def test_the_text_says_which_sockets_are_taken(server: Server, request_: str) -> None:
    front = server.started()
    assert is_refused(server, front, Request[request_], wire.u64(0), [lingering(server)])
    text = f"{request_}: queue 0: its descriptor is a socket of address family 2, not AF_UNIX"
    server.assert_logs(text)


@pytest.mark.parametrize("request_", [one for one, _ in REFUSED[:4]])
def test_a_unix_socket_with_a_lingering_one_in_its_queue_holds_nothing_up(
    server: Server, request_: Request
) -> None:
    """Each takes the place of the one before, which is closed."""
    front = server.started()
    payload = b"" if request_ == Request.SET_BACKEND_REQ_FD else wire.u64(0)
    for _ in range(3):
        assert not is_refused(server, front, request_, payload, [filled_with_one(server)])
    front.change(Request.SET_VRING_KICK, wire.u64(0), [front.rings[0].kick_fd])
    front.change(Request.SET_VRING_CALL, wire.u64(0), [front.rings[0].call_fd])
    assert front.blk().read(0, 512).status == 0
    assert front.stop_ring() == 1


@pytest.mark.parametrize(("request_", "payload"), REFUSED)
def test_a_file_whose_server_has_stopped_is_closed_without_waiting_for_it(
    server: Server, slow_files: SlowFiles, request_: Request, payload: bytes
) -> None:
    """More often than there are threads that could wait for it."""
    file = server.own(slow_files.cached)
    server.own(slow_files.direct)
    front = server.started()
    with asleep(slow_files.process.pid):
        for _ in range(1 if request_ == Request.SET_MEM_TABLE else 12):
            assert front.is_refused(request_, payload, [file])
        assert front.blk().read(0, 512).status == 0
        front.channel.close()
        server.check_victim()
        server.check_witness()


def test_a_folder_whose_server_has_stopped_is_no_memory(
    server: Server, slow_files: SlowFiles
) -> None:
    """It is refused for what it is, which its server is not asked for."""
    server.own(slow_files.cached)
    server.own(slow_files.direct)
    folder = server.own(os.open(os.path.dirname(slow_files.path), os.O_RDONLY))
    front = server.started()
    with asleep(slow_files.process.pid):
        table = wire.memory_table([wire.region(0, 4096, 0, 0)])
        assert front.is_refused(Request.SET_MEM_TABLE, table, [folder])


def with_a_later_byte(front: FrontEnd, fds: list[int]) -> None:
    message = wire.frame(Request.GET_FEATURES)
    front.channel.send(message[:4])
    front.channel.send(message[4:], fds)


def with_an_urgent_byte(front: FrontEnd, fds: list[int]) -> None:
    message = wire.frame(Request.GET_FEATURES)
    rights = struct.pack(f"{len(fds)}i", *fds)
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    front.channel.socket.sendmsg([message[:1]], control, socket.MSG_OOB)
    front.channel.send(message[1:])


def with_too_many(front: FrontEnd, fds: list[int]) -> None:
    front.channel.send(wire.frame(Request.GET_FEATURES), fds * 253)


def unread(front: FrontEnd, fds: list[int]) -> None:
    """Nobody reads on behind a message that breaks the protocol."""
    front.channel.send(struct.pack("<III", Request.GET_FEATURES, Flag.VERSION, 1 << 20))
    front.channel.send(wire.frame(Request.GET_FEATURES), fds)


@pytest.mark.parametrize("send", [with_a_later_byte, with_an_urgent_byte, with_too_many, unread])
def test_descriptors_that_belong_to_no_message_hold_nothing_up(
    server: Server, send: Callable[[FrontEnd, list[int]], None]
) -> None:
    """The kernel would close them in the middle of another call."""
    for _ in range(3):
        front = server.connect().negotiate()
        with asleep(server.pid), contextlib.closing(lingering(server)) as passed:
            send(front, [passed.fileno()])
        front.channel.close()
        server.check_victim()


def test_a_front_end_that_leaves_too_many_unclosed_loses_its_connection_and_no_more(
    server: Server,
) -> None:
    """The next one is served when they are closed: here, when their peers are gone."""
    front = server.started()
    sockets = [lingering(server) for _ in range(MOST_UNCLOSED + 9)]
    # Sent at once: a signal to the server would end what waits in `close`.
    message = wire.frame(Request.SET_VRING_NUM, wire.state(0, 64), Flag.VERSION | Flag.NEED_REPLY)
    with asleep(server.pid):
        for some in (sockets[:32], sockets[32:64], sockets[64:]):
            front.channel.send(message, [each.fileno() for each in some])
        for each in sockets:
            each.close()
    for _ in range(3):
        assert front.channel.answer_to(Request.SET_VRING_NUM) != wire.u64(0)
    assert front.channel.is_closed()
    server.check_witness()
    text = "too many descriptors that were passed cannot be closed: their files do not answer"
    server.assert_logs(text)
    text = "no front-end can be taken for now: the files that former front-ends have passed"
    server.assert_logs(text)
    server.hang_up()
    server.check_victim()


def test_a_stop_does_not_wait_for_what_waiting_front_ends_have_passed(tmp_path: Path) -> None:
    server = Server(tmp_path, {"kind": "ram"})
    try:
        server.started()
        waiting = server.channel()
        with contextlib.closing(lingering(server)) as passed:
            waiting.send(wire.frame(Request.GET_FEATURES), [passed.fileno()])
        waiting.close()
        assert server.ask("stop", 0.1) < 5
    finally:
        status = server.close()
    assert status == 0
