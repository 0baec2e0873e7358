"""Direct I/O that the kernel has begun: it goes on in the guest's pages, whatever is mapped there.

The image lies on a file system that answers reads when the test says so.
"""

import os
from collections.abc import Iterator

import pytest
from peer import wire
from peer.blk import HEADER, Type
from peer.front_end import FrontEnd
from peer.memory import PAGE
from peer.numbers import Request
from peer.patience import is_readable
from peer.ring import Segment

from .fuse import SlowFiles
from .fuse_server import BYTE
from .server import Server

PATIENCE = 3.0
"""Seconds after which what does not happen counts as not happening: three times as many as requests
have to come back when their front-end has gone."""
OLD = b"\xc3" * PAGE


@pytest.fixture
def server(slow_files: SlowFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that goes past the page cache."""
    os.close(slow_files.cached)
    os.close(slow_files.direct)
    victim = {"kind": "file", "path": slow_files.path, "direct": True}
    server = Server(tmp_path_factory.mktemp("vu"), victim)
    try:
        yield server
    finally:
        slow_files.release()
        assert server.close() == 0


def read_begun(server: Server, files: SlowFiles) -> tuple[FrontEnd, int]:
    """A front-end whose read of one page the kernel has begun; where its data is to go."""
    front = server.started()
    header, status = front.memory.allocate(16), front.memory.allocate(1, 1)
    data = front.memory.allocate(PAGE, PAGE)
    front.memory.write(header, HEADER.pack(Type.IN, 0, 0))
    front.memory.write(data, OLD)
    files.hold()
    front.rings[0].add([Segment(header, 16), Segment(data, PAGE, True), Segment(status, 1, True)])
    front.rings[0].kick()
    files.wait_for_a_read()
    return front, data


def comes_within(channel: wire.Channel, seconds: float) -> bool:
    """Whether anything comes, an answer or the end."""
    return is_readable(channel.socket.fileno(), seconds)


def test_a_front_end_that_comes_back_waits_for_what_the_kernel_has_begun(
    server: Server, slow_files: SlowFiles
) -> None:
    front, data = read_begun(server, slow_files)
    front.channel.close()
    again = server.channel()
    again.command(Request.GET_FEATURES)
    assert not comes_within(again, PATIENCE)
    assert front.memory.read(data, PAGE) == OLD
    server.assert_logs("queue 0: direct I/O of its requests is still under way")
    slow_files.release()
    assert again.answer_to(Request.GET_FEATURES)
    assert front.memory.read(data, PAGE) == BYTE * PAGE


def test_a_queue_that_stops_waits_for_what_the_kernel_has_begun(
    server: Server, slow_files: SlowFiles
) -> None:
    """Requests have two seconds here; then those of another kind fail."""
    front, data = read_begun(server, slow_files)
    front.channel.command(Request.GET_VRING_BASE, wire.state(0, 0))
    assert not comes_within(front.channel, PATIENCE)
    assert front.rings[0].used_index == 0
    slow_files.release()
    assert front.channel.answer_to(Request.GET_VRING_BASE) == wire.state(0, 1)
    assert front.rings[0].take(1)[0].length == PAGE + 1
    assert front.memory.read(data, PAGE) == BYTE * PAGE


def test_a_stop_does_not_wait_and_the_connection_is_open_until_the_kernel_is_done(
    server: Server, slow_files: SlowFiles
) -> None:
    front, data = read_begun(server, slow_files)
    assert server.ask("stop", 0.1) < PATIENCE
    assert front.channel.is_open()
    assert front.memory.read(data, PAGE) == OLD
    slow_files.release()
    assert front.channel.is_closed()
    assert front.memory.read(data, PAGE) == BYTE * PAGE
