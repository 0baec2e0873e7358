"""Call and error descriptors that cannot be written to, or would hold a writer up for ever."""

import fcntl
import os
import socket
import time
from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import Type
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.process import cpu_seconds, eventually

from .server import Server


def filled(write: Callable[[bytes], int], descriptor: int) -> None:
    """Writes until nothing more fits, then makes the descriptor block again."""
    os.set_blocking(descriptor, False)
    try:
        while True:
            write(bytes(4096))
    except BlockingIOError:
        os.set_blocking(descriptor, True)


def full_pipe(server: Server) -> int:
    reader, writer = os.pipe()
    server.own(reader)
    filled(lambda data: os.write(writer, data), writer)
    return server.own(writer)


def pipe_without_reader(server: Server) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return server.own(writer)


def pipe_for_reading(server: Server) -> int:
    reader, writer = os.pipe()
    server.own(writer)
    return server.own(reader)


def full_socket(server: Server) -> int:
    ours, theirs = socket.socketpair()
    server.track(ours)
    filled(theirs.send, theirs.fileno())
    return server.own(theirs.detach())


def socket_without_peer(server: Server) -> int:
    ours, theirs = socket.socketpair()
    ours.close()
    return server.own(theirs.detach())


def full_counter(server: Server) -> int:
    descriptor = server.own(os.eventfd(0, os.EFD_CLOEXEC))
    os.eventfd_write(descriptor, (1 << 64) - 2)
    return descriptor


def null_device(server: Server) -> int:
    return server.own(os.open("/dev/null", os.O_WRONLY))


def full_device(server: Server) -> int:
    return server.own(os.open("/dev/full", os.O_WRONLY))


def directory(server: Server) -> int:
    return server.own(os.open("/", os.O_RDONLY))


def locked_file(server: Server) -> int:
    descriptor = server.memfd()
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


KINDS = [
    full_pipe,
    pipe_without_reader,
    pipe_for_reading,
    full_socket,
    socket_without_peer,
    full_counter,
    null_device,
    full_device,
    directory,
    locked_file,
]


@pytest.mark.parametrize("make", KINDS)
def test_a_call_descriptor_that_takes_no_call_holds_nothing_up(
    server: Server, make: Callable[[Server], int]
) -> None:
    """It may be refused; if not, requests are answered though nobody is called."""
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    front.configure_ring()
    if front.is_refused(Request.SET_VRING_CALL, wire.u64(0), [make(server)]):
        return
    front.change(Request.SET_VRING_KICK, wire.u64(0), [ring.kick_fd])
    front.enable()
    disk = front.blk()
    for turn in range(5):
        request = disk.prepare(Type.IN, 0, room=512)
        disk.submit(request)
        ring.kick()
        assert eventually(lambda turn=turn: ring.used_index == turn + 1)  # type: ignore[misc]
        assert disk.result(request).status == 0
    assert front.stop_ring() == 5


@pytest.mark.parametrize("make", KINDS)
def test_an_error_descriptor_that_takes_no_error_holds_nothing_up(
    server: Server, make: Callable[[Server], int]
) -> None:
    front = server.connect().negotiate().share_memory()
    ring = front.start_ring(0)
    front.start_ring(1)
    if front.is_refused(Request.SET_VRING_ERR, wire.u64(0), [make(server)]):
        return
    ring.offer(0xFFFF)
    ring.kick()
    for _ in range(5):
        assert front.blk(1).read(0, 512).status == 0
    assert ring.used_index == 0
    front.stop_ring(0)


def test_one_descriptor_for_kick_call_and_error_is_no_busy_loop(server: Server) -> None:
    """Each call then is a kick as well."""
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    front.configure_ring()
    for message in (Request.SET_VRING_ERR, Request.SET_VRING_CALL, Request.SET_VRING_KICK):
        front.change(message, wire.u64(0), [ring.kick_fd])
    front.enable()
    disk = front.blk()
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    ring.kick()
    assert eventually(lambda: ring.used_index == 1)
    before = cpu_seconds(server.pid)
    time.sleep(0.5)  # the span that is measured, not a synchronisation
    assert cpu_seconds(server.pid) - before < 0.05
    assert front.stop_ring() == 1


def test_the_queues_may_share_their_descriptors(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    one, other = front.add_ring(0), front.add_ring(1)
    for ring in (one, other):
        os.dup2(one.kick_fd, ring.kick_fd)
        os.dup2(one.call_fd, ring.call_fd)
    for index in (0, 1):
        front.start_ring(index)
    for turn in range(20):
        disk = front.blk(turn % 2)
        disk.submit(disk.prepare(Type.IN, 0, room=512))
        disk.ring.kick()
        assert eventually(used_again(front, turn))


def used_again(front: FrontEnd, turn: int) -> Callable[[], bool]:
    """Whether both rings together have used one chain more than there were turns."""
    return lambda: sum(ring.used_index for ring in front.rings.values()) == turn + 1


def empty_counter(server: Server) -> int:
    return server.own(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))


def fill_counter(descriptor: int) -> None:
    os.eventfd_write(descriptor, (1 << 64) - 2 - os.eventfd_read(descriptor))


def fill(descriptor: int) -> None:
    """Any file that takes a stream of bytes."""
    filled(lambda data: os.write(descriptor, data), descriptor)


def open_pipe(server: Server) -> int:
    reader, writer = os.pipe()
    server.own(reader)
    os.set_blocking(writer, False)
    return server.own(writer)


def open_socket(server: Server) -> int:
    ours, theirs = socket.socketpair()
    server.track(ours)
    theirs.setblocking(False)
    return server.own(theirs.detach())


@pytest.mark.parametrize(
    ("make", "refill"),
    [(empty_counter, fill_counter), (open_pipe, fill), (open_socket, fill)],
)
def test_no_descriptor_that_is_filled_and_made_to_block_later_holds_a_worker(
    server: Server, make: Callable[[Server], int], refill: Callable[[int], None]
) -> None:
    """O_NONBLOCK belongs to the open file, which the front-end has as well."""
    for _ in range(3):
        front = server.started(2)
        ring, disk = front.rings[0], front.blk()
        call, error = make(server), make(server)
        front.change(Request.SET_VRING_CALL, wire.u64(0), [call])
        front.change(Request.SET_VRING_ERR, wire.u64(0), [error])
        if make is empty_counter:
            os.eventfd_write(error, 1)
        for descriptor in (call, error):
            refill(descriptor)
            os.set_blocking(descriptor, True)
        for turn in range(3):
            disk.submit(disk.prepare(Type.IN, 0, room=512))
            ring.kick()
            assert eventually(lambda r=ring, n=turn + 1: r.used_index == n)  # type: ignore[misc]
        ring.offer(0xFFFF)
        ring.kick()
        assert front.blk(1).read(0, 512).status == 0
        assert front.stop_ring(0) == 3
        front.channel.close()
        assert eventually(lambda: server.ask("state") == "listening")
    server.hang_up()
    assert server.settled() == ""
