"""Memory that a front-end cuts, or punches holes into, while the device uses it."""

import ctypes
import os
from collections.abc import Callable

import pytest
from peer.blk import CANARY, HEADER, Type
from peer.front_end import FrontEnd
from peer.memory import GuestMemory, Region
from peer.ring import Segment

from .server import Server

MIB = 1 << 20
DATA = 64 * MIB
"""Guest address of a second region, for data alone."""
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


def cut(front: FrontEnd, region: int = 0, size: int = 0) -> None:
    """Cuts the file behind a region. From then on this process must not touch that part either."""
    os.ftruncate(front.memory.fds[region], size)


def apart(server: Server, size: int = MIB) -> FrontEnd:
    """A running ring, and a region of `size` bytes for data apart from it."""
    memory = GuestMemory(Region(0, 16 * MIB), Region(DATA, size))
    return server.started(size=256, memory=memory)


def submit_on(front: FrontEnd, kind: Type, sector: int, data: int, length: int) -> int:
    """Makes a request available whose data lies at a guest address; gives that of its status."""
    header = front.memory.allocate(16)
    front.memory.write(header, HEADER.pack(kind, 0, sector))
    status = front.memory.allocate(1, 1)
    front.memory.write(status, bytes([CANARY]))
    front.rings[0].add(
        [Segment(header, 16), Segment(data, length, kind == Type.IN), Segment(status, 1, True)]
    )
    return status


def assert_dropped(server: Server, front: FrontEnd) -> None:
    """The connection is closed, for the right reason; others are served, and so is the next."""
    assert front.channel.is_closed()
    server.check_witness()
    server.assert_logs("has cut the file behind guest memory")
    assert server.started().blk().read(0, 512).status == 0


def assert_fails_and_changes_nothing(server: Server, kind: Type, data: int) -> None:
    """A request whose data, from this guest address on, is cut before the device hears of it."""
    before = server.image.read_bytes()
    front = apart(server)
    status = submit_on(front, kind, 0, data, 512 << 10)
    cut(front, region=1)
    front.rings[0].kick()
    assert_dropped(server, front)
    assert front.memory.read(status, 1)[0] != 0
    assert front.rings[0].used_index == 0
    assert server.image.read_bytes() == before


def test_memory_that_was_cut_while_nothing_ran_ends_the_connection_at_the_next_kick(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    for _ in range(turns(200, 1000)):
        front = server.started()
        assert front.blk().read(0, 512).status == 0
        cut(front)
        front.rings[0].kick()
        assert front.channel.is_closed()
        server.hang_up()
    server.check_witness()
    server.assert_logs("has cut the file behind guest memory")


def test_memory_that_is_cut_in_part_ends_the_connection(server: Server) -> None:
    """The ring stays; the header of a request is gone."""
    front = apart(server)
    front.rings[0].add([Segment(DATA, 16), Segment(front.memory.allocate(1, 1), 1, True)])
    cut(front, region=1)
    front.rings[0].kick()
    assert_dropped(server, front)
    assert front.rings[0].used_index == 0


def test_a_ring_that_starts_in_memory_that_was_cut_ends_the_connection(server: Server) -> None:
    front = server.connect().negotiate().share_memory()
    front.add_ring()
    front.configure_ring()
    cut(front)
    front.hand_over_events()
    assert_dropped(server, front)


def test_a_kick_of_one_queue_in_memory_that_was_cut_ends_all_of_the_connection(
    server: Server,
) -> None:
    front = server.started(queues=2)
    cut(front)
    front.rings[1].kick()
    assert_dropped(server, front)


@pytest.mark.victim("file")
@pytest.mark.parametrize("kind", [Type.IN, Type.OUT])
def test_a_request_whose_data_is_gone_never_succeeds(server: Server, kind: Type) -> None:
    """The device moves data by system calls, which fail: nothing ever faults."""
    assert_fails_and_changes_nothing(server, kind, DATA)


@pytest.mark.victim("file", direct=True)
@pytest.mark.parametrize("kind", [Type.IN, Type.OUT])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_request_past_the_page_cache_whose_data_is_gone_never_succeeds(
    server: Server, kind: Type, shift: int
) -> None:
    """What is not aligned goes through other memory: no zeroes reach the disk from there."""
    assert_fails_and_changes_nothing(server, kind, DATA + shift)


@pytest.mark.victim("file", size=32 * MIB)
@pytest.mark.parametrize("kind", [Type.IN, Type.OUT])
def test_memory_may_be_cut_in_the_middle_of_input_and_output(
    server: Server, kind: Type, turns: Callable[[int, int], int]
) -> None:
    for turn in range(turns(50, 1000)):
        front = apart(server, 32 * MIB)
        for place in range(64):
            submit_on(front, kind, 0, DATA + place * (MIB // 2), MIB // 2)
        front.rings[0].kick()
        # At another time each turn: when so many requests are done, or as soon as they are not.
        while turn % 4 and front.rings[0].used_index < turn % 16:
            pass
        cut(front, region=1)
        front.rings[0].kick()
        server.check_witness()
        server.hang_up()
    assert server.started().blk().read(0, 512).status == 0


@pytest.mark.victim("holding")
def test_a_view_of_memory_that_is_cut_shows_zeroes(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """Python reads on in a thread of its own, as if nothing had happened; then the API says so."""
    for _ in range(turns(5, 200)):
        server.ask("reset")
        front = server.started()
        disk = front.blk()
        disk.submit(disk.prepare(Type.OUT, 0, b"\x99" * 512))
        front.rings[0].kick()
        assert server.awaits("held", 1)
        server.ask("look_on")
        assert server.ask("seen") == "99" * 512
        cut(front)
        assert server.awaits("seen", "00" * 512)
        assert front.channel.is_closed()
        server.check_witness()
        assert server.awaits("state", "listening")
        server.ask("look_away")
        assert server.ask("release") == ["StaleRequestError"]
        server.hang_up()
    server.assert_logs("has cut the file behind guest memory")


@pytest.mark.parametrize("kind", ["ram", "file"])
def test_holes_in_memory_read_as_zeroes(
    fresh_server: Callable[..., Server], kind: str, turns: Callable[[int, int], int]
) -> None:
    """As a balloon or a memory device of the guest makes them: not an error at all."""
    server = fresh_server(kind)
    front = apart(server)
    disk = front.blk()
    front.memory.write(DATA, b"\x99" * MIB)
    for turn in range(turns(50, 1000)):
        submit_on(front, Type.OUT, 0, DATA, MIB // 2)
        front.rings[0].kick()
        if turn % 2:
            punch(front.memory.fds[1], MIB)
        front.rings[0].wait(1)
    punch(front.memory.fds[1], MIB)
    status = submit_on(front, Type.OUT, 0, DATA, MIB // 2)
    front.rings[0].kick()
    front.rings[0].wait(1)
    assert front.memory.read(status, 1)[0] == 0
    assert disk.read(0, 64 << 10).data == bytes(64 << 10)
    submit_on(front, Type.IN, 0, DATA, MIB // 2)
    front.rings[0].kick()
    front.rings[0].wait(1)
    assert front.lives()


def punch(fd: int, size: int) -> None:
    """Gives all pages of a file back and keeps its length."""
    libc = ctypes.CDLL(None, use_errno=True)
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    result = libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(size))
    assert result == 0, os.strerror(ctypes.get_errno())
