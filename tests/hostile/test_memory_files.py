"""In which files guest memory may lie: not in those whose file system may stop to answer."""

import os
from pathlib import Path

import pytest
from peer import wire
from peer.front_end import FrontEnd
from peer.memory import PAGE
from peer.numbers import Request
from peer.process import asleep

from .conftest import Refused
from .fuse import SlowFiles
from .server import Server

ALLOWED = pytest.mark.victim("ram", backend={"any_memory_file": True})


def whole(descriptor: int) -> bytes:
    """A table of one region, all of a file."""
    return wire.memory_table([wire.region(0, os.fstat(descriptor).st_size, 0, 0)])


def is_refused(front: FrontEnd, descriptor: int) -> bool:
    return front.is_refused(Request.SET_MEM_TABLE, whole(descriptor), [descriptor])


def test_memory_on_a_file_system_that_may_stop_to_answer_is_refused(
    server: Server, refused: Refused, slow_files: SlowFiles
) -> None:
    memory = server.own(slow_files.cached)
    server.own(slow_files.direct)
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, whole(memory), [memory])
    server.assert_logs("its file lies on FUSE, and a file system that stops to answer hangs")
    server.assert_logs("allow it with any_memory_file=True (--any-memory-file)")


def test_a_file_system_that_has_stopped_to_answer_is_not_waited_for(
    server: Server, slow_files: SlowFiles
) -> None:
    """Not even for what it is: this process does not see where it is mounted, and has to ask."""
    memory = server.own(slow_files.cached)
    server.own(slow_files.direct)
    with asleep(slow_files.process.pid):
        front = server.connect().negotiate()
        assert is_refused(front, memory)
        server.assert_logs("a file system that does not say what it is (it does not answer)")
        # Nor for what comes of its files as other descriptors.
        for message in (Request.SET_VRING_CALL, Request.SET_VRING_ERR):
            assert front.is_refused(message, wire.u64(0), [memory])
        server.check_witness()


def test_a_kick_descriptor_on_a_file_system_that_has_stopped_to_answer_is_refused(
    server: Server, slow_files: SlowFiles
) -> None:
    """Whoever waits for such a file asks its file system whether it is readable."""
    file = server.own(slow_files.cached)
    server.own(slow_files.direct)
    front = server.started()
    with asleep(slow_files.process.pid):
        assert front.is_refused(Request.SET_VRING_KICK, wire.u64(0), [file])
        assert front.blk().read(0, 512).status == 0
        front.stop_ring()
        # Nor does it start a ring.
        front.configure_ring(base=1)
        assert front.is_refused(Request.SET_VRING_KICK, wire.u64(0), [file])


@ALLOWED
def test_memory_on_any_file_system_is_taken_where_that_is_asked_for(
    server: Server, slow_files: SlowFiles
) -> None:
    memory = server.own(slow_files.cached)
    server.own(slow_files.direct)
    assert not is_refused(server.connect().negotiate(), memory)


@pytest.mark.parametrize("folder", ["/dev/shm", "here"])
def test_memory_in_files_of_this_host_is_taken(server: Server, tmp_path: Path, folder: str) -> None:
    """libvirt puts guest memory into ordinary files, QEMU into /dev/shm."""
    path = tmp_path if folder == "here" else Path(folder)
    memory = server.own(os.open(path, os.O_RDWR | os.O_TMPFILE))
    os.ftruncate(memory, PAGE)
    assert not is_refused(server.connect().negotiate(), memory)
