"""What a front-end asks for while a callback runs: it holds at once, and nothing piles up."""

import os
import select
from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import Request as BlkRequest
from peer.blk import Status, Type
from peer.front_end import FrontEnd
from peer.numbers import Feature, Request
from peer.process import Holdings, eventually
from peer.ring import drain, signalled

from .server import Server

SECONDS = 5.0


def begin(server: Server, front: FrontEnd, index: int = 0) -> BlkRequest:
    """A read whose callback does not return before the gate is open."""
    server.ask("shut")
    disk = front.blk(index)
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    disk.ring.kick()
    assert server.awaits("waiting", 1)
    return request


def descriptors(server: Server) -> int:
    """How many descriptors the process has open."""
    return sum(Holdings.of(server.pid).descriptors.values())


@pytest.mark.parametrize("also", [0, Feature.EVENT_IDX])
def test_a_call_descriptor_that_is_replaced_during_a_callback_is_told_of_its_answer(
    server: Server, also: int
) -> None:
    front = server.started(also=also)
    ring, disk = front.rings[0], front.blk()
    request = begin(server, front)
    new = server.eventfd()
    front.change(Request.SET_VRING_CALL, wire.u64(0), [new])
    assert drain(new) == 1, "once when it takes effect, before the acknowledgement"
    server.ask("open")
    assert signalled(new, SECONDS)
    assert (ring.used_index, disk.result(request).status) == (1, Status.OK)
    assert drain(ring.call_fd) == 0


def test_the_decision_to_notify_starts_anew_with_a_call_descriptor(server: Server) -> None:
    """The driver's event index says 0 all along: it heard of the first answer, and no more."""
    front = server.started(also=Feature.EVENT_IDX)
    ring, disk = front.rings[0], front.blk()

    def answered(count: int) -> None:
        disk.submit(disk.prepare(Type.IN, 0, room=512))
        ring.kick()
        assert eventually(lambda: ring.used_index == count)

    answered(1)
    assert signalled(ring.call_fd, SECONDS)
    answered(2)
    new = server.eventfd()
    front.change(Request.SET_VRING_CALL, wire.u64(0), [new])
    assert drain(new) == 1
    answered(3)
    assert signalled(new, SECONDS), "it may have missed what was told to the former one"
    answered(4)
    answered(5)
    front.stop_ring()
    assert drain(new) == 0
    assert drain(ring.call_fd) == 0


@pytest.mark.victim("holding")
def test_a_kept_request_is_told_to_the_call_descriptor_of_the_time_of_its_answer(
    server: Server,
) -> None:
    front = server.started()
    disk = front.blk()
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    disk.ring.kick()
    assert server.awaits("held", 1)
    fds = [server.eventfd() for _ in range(3)]
    for fd in fds:
        front.change(Request.SET_VRING_CALL, wire.u64(0), [fd])
    assert [drain(fd) for fd in fds] == [1, 1, 1]
    assert server.ask("release") == []
    assert signalled(fds[2], SECONDS)
    assert [drain(fd) for fd in fds[:2]] == [0, 0]


def test_a_call_descriptor_that_is_taken_away_is_not_called(server: Server) -> None:
    front = server.started()
    ring = front.rings[0]
    begin(server, front)
    front.change(Request.SET_VRING_CALL, wire.u64(0 | 1 << 8))
    server.ask("open")
    assert eventually(lambda: ring.used_index == 1)
    front.stop_ring()
    assert drain(ring.call_fd) == 0


def test_an_error_descriptor_that_was_replaced_is_told_of_the_error(server: Server) -> None:
    front = server.started()
    ring = front.rings[0]
    begin(server, front)
    new = server.eventfd()
    front.change(Request.SET_VRING_ERR, wire.u64(0), [new])
    assert drain(new) == 0, "there is no error yet"
    ring.available_index = ring.available_index + ring.size + 2
    ring.kick()
    server.ask("open")
    assert signalled(new, SECONDS)
    assert drain(ring.error_fd) == 0


@pytest.mark.parametrize("message", ["CALL", "ERR", "KICK", "ENABLE", "all"])
def test_thousands_of_messages_during_a_callback_leave_nothing_behind(
    server: Server, turns: Callable[[int, int], int], message: str
) -> None:
    front = server.started()
    ring = front.rings[0]
    request = begin(server, front)
    before = descriptors(server)
    fds = {"CALL": ring.call_fd, "ERR": ring.error_fd, "KICK": ring.kick_fd}
    for turn in range(turns(1500, 20_000)):
        for name in (*fds, "ENABLE") if message == "all" else [message]:
            if name == "ENABLE":
                front.change(Request.SET_VRING_ENABLE, wire.state(0, turn % 2))
            else:
                front.change(Request[f"SET_VRING_{name}"], wire.u64(0), [fds[name]])
    assert descriptors(server) - before <= 2
    server.check_witness()
    front.enable()
    server.ask("open")
    assert eventually(lambda: ring.used_index == 1)
    assert front.blk().result(request).status == Status.OK
    ring.wait()
    assert front.blk().read(0, 512).status == Status.OK


def test_descriptors_of_a_session_are_closed_though_its_callback_still_runs(
    server: Server,
) -> None:
    idle = server.settled() or descriptors(server)
    assert isinstance(idle, int)
    front = server.started(2)
    begin(server, front)
    for _ in range(100):
        for message in (Request.SET_VRING_CALL, Request.SET_VRING_ERR, Request.SET_VRING_KICK):
            front.change(message, wire.u64(0), [server.eventfd()])
    front.channel.close()
    # The worker that is left has what it waits with.
    assert eventually(lambda: descriptors(server) - idle <= 3), descriptors(server) - idle
    assert Holdings.of(server.pid).guest_mappings <= 4, "what the request shows"
    server.ask("open")


def test_a_ring_whose_disabling_was_acknowledged_takes_nothing_more(server: Server) -> None:
    front = server.started(2)
    ring, disk = front.rings[0], front.blk()
    begin(server, front)
    front.enable(0, 0)
    second = disk.prepare(Type.IN, 1, room=512)
    disk.submit(second)
    ring.kick()
    server.ask("open")
    assert eventually(lambda: ring.used_index == 1), "what was taken before is answered"
    for _ in range(20):
        assert front.blk(1).read(2, 512).status == Status.OK
    assert (ring.used_index, {offset for _, offset, _ in server.calls()}) == (1, {0, 1024})
    front.enable(0, 1)
    assert eventually(lambda: ring.used_index == 2)
    assert disk.result(second).status == Status.OK


@pytest.mark.victim("holding")
def test_requests_that_are_late_fail_and_all_else_goes_on(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    ring, disk = front.start_ring(0), front.blk()
    requests = [disk.prepare(Type.IN, 0, room=512), disk.prepare(Type.OUT, 0, b"x" * 512)]
    for request in requests:
        disk.submit(request)
    ring.kick()
    assert server.awaits("held", 2)
    front.channel.command(Request.GET_VRING_BASE, wire.state(0, 0))
    server.check_witness()
    assert wire.STATE.unpack(front.channel.receive().payload) == (0, 2)
    assert ring.used_index == 2
    assert [disk.result(request).status for request in requests] == [Status.IOERR] * 2
    assert front.lives()
    assert server.ask("release") == ["StaleRequestError"] * 2
    assert server.content() == bytes(len(server.content()))
    ring.take(2)
    front.start_ring(0, base=2)
    assert disk.read(0, 512).status == Status.OK
    assert front.stop_ring() == 3


def null(server: Server) -> int:
    return server.own(os.open("/dev/null", os.O_RDWR))


def regular(server: Server) -> int:
    return server.own(os.open(server.folder / "stderr", os.O_RDWR))


def folder(server: Server) -> int:
    return server.own(os.open(server.folder, os.O_RDONLY))


def waiting(server: Server) -> int:
    with select.epoll() as poll:
        return server.own(os.dup(poll.fileno()))


@pytest.mark.parametrize("name", ["CALL", "ERR", "KICK"])
@pytest.mark.parametrize(
    ("make", "called"),
    [
        (null, "/dev/null"),
        (regular, "/stderr"),
        (folder, "/vu"),
        (Server.memfd, "/memfd:peer-guest"),
        (waiting, "anon_inode:[eventpoll]"),
    ],
)
def test_files_that_may_hold_a_thread_up_are_refused_as_descriptors_of_events(
    server: Server, make: Callable[[Server], int], called: str, name: str
) -> None:
    front = server.started()
    logged = len(server.log())
    assert front.is_refused(Request[f"SET_VRING_{name}"], wire.u64(0), [make(server)])
    words = (f"SET_VRING_{name}: queue 0: its descriptor", called, "not an eventfd")
    server.assert_logs(*words, after=logged)
    assert front.lives()
    assert front.blk().read(0, 512).status == Status.OK, "what was there before is used on"
