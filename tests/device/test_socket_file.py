"""The socket's file and inherited descriptors: what is taken, replaced, refused or cleaned up."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.process import eventually

from .conftest import Bench, RamDisk


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def serves(path: Path) -> bool:
    with FrontEnd.connect(str(path)).start() as front:
        return front.blk().read(0, 512).status == Status.OK


def test_a_socket_is_only_for_its_owner_and_goes_with_its_back_end(bench: Bench) -> None:
    path = bench.folder / "own.sock"
    with vu.Backend(RamDisk(), socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert serves(path)
    assert not path.exists()
    assert sorted(entry.name for entry in bench.folder.iterdir()) == ["0.sock"]


def test_a_stale_socket_is_replaced(bench: Bench) -> None:
    path = bench.folder / "stale.sock"
    listen(path).close()
    with vu.Backend(RamDisk(), socket=path):
        assert serves(path)


def test_a_live_socket_is_not_stolen(bench: Bench) -> None:
    path = bench.folder / "0.sock"
    with pytest.raises(OSError, match=r"0\.sock"):
        vu.Backend(RamDisk(), socket=path).start()
    bench.check_witness()
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink"])
def test_what_is_no_socket_is_not_replaced(bench: Bench, kind: str) -> None:
    path = bench.folder / "taken"
    target = bench.folder / "target"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        if kind == "symlink":
            target.write_text("precious")
        path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(OSError, match="taken"):
        vu.Backend(RamDisk(), socket=path).start()
    assert path.lstat().st_ino == before.st_ino
    assert kind != "symlink" or target.read_text() == "precious"


def test_a_path_that_is_too_long_is_an_error_that_says_so(bench: Bench) -> None:
    path = bench.folder / ("x" * 108)
    with pytest.raises((ValueError, OSError), match=r"10[78]|too long"):
        vu.Backend(RamDisk(), socket=path).start()


def test_the_longest_path_works(bench: Bench) -> None:
    path = bench.folder / ("x" * (107 - len(str(bench.folder)) - 1))
    assert len(str(path)) == 107
    with vu.Backend(RamDisk(), socket=path):
        assert serves(path)


def test_a_folder_that_does_not_exist_is_an_error(bench: Bench) -> None:
    with pytest.raises(FileNotFoundError):
        vu.Backend(RamDisk(), socket=bench.folder / "none" / "x.sock").start()


def test_a_socket_that_somebody_else_put_in_its_place_is_left_alone(bench: Bench) -> None:
    path = bench.folder / "moved.sock"
    with vu.Backend(RamDisk(), socket=path):
        path.unlink()
        successor = listen(path)
    assert path.exists()
    successor.close()


def test_a_connected_descriptor_is_served(bench: Bench) -> None:
    """Non-blocking on this side too, as a peer that shares its description could make it."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    backend = vu.Backend(RamDisk(), fd=theirs.fileno()).start()
    front = FrontEnd(wire.Channel(ours)).start()
    assert front.blk().read(0, 512).status == Status.OK
    theirs.setblocking(True)
    theirs.setblocking(False)
    assert front.blk().read(0, 512).status == Status.OK
    assert front.lives()
    theirs.close()
    front.close()
    assert eventually(lambda: backend.state == "stopped")
    backend.stop(drain=0.2)


def test_a_listening_descriptor_is_served(bench: Bench) -> None:
    path = bench.folder / "inherited.sock"
    listener = listen(path)
    with vu.Backend(RamDisk(), fd=listener.fileno()):
        listener.close()
        assert serves(path)
        assert serves(path)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "pipe", "closed"])
def test_a_descriptor_that_is_no_socket_is_an_error(bench: Bench, kind: str) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    if kind != "pipe":
        os.close(reader)
    if kind == "file":
        reader = os.open(bench.folder / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises((OSError, ValueError)):
        vu.Backend(RamDisk(), fd=reader).start()
    if kind != "closed":
        os.close(reader)  # still ours: the back-end makes its own copy


def test_a_back_end_may_dial_and_dials_again(bench: Bench) -> None:
    path = bench.folder / "dial.sock"
    backend = vu.Backend(RamDisk(), socket=path, connect=True).start()
    listener = listen(path)
    listener.settimeout(10)
    for _ in range(2):
        connected, _ = listener.accept()
        with FrontEnd(wire.Channel(connected)).start() as front:
            assert front.blk().read(0, 512).status == Status.OK
    backend.stop(drain=0.2)
    listener.close()
    assert path.exists()


def test_a_back_end_needs_a_place_and_not_two() -> None:
    with pytest.raises(ValueError, match="exclude"):
        vu.Backend(RamDisk(), socket="a.sock", fd=0)
    with pytest.raises((ValueError, OSError, vu.VhostUserError)):
        vu.Backend(RamDisk()).start()


def test_waiting_for_a_front_end_that_does_not_come_ends(bench: Bench) -> None:
    backend = bench.serve(RamDisk())
    assert backend.state == "listening"
    assert backend.wait_running(0.05) is False
    waiter = threading.Thread(target=backend.wait_running)
    waiter.start()
    backend.stop(drain=0.2)
    waiter.join(5)
    assert not waiter.is_alive()


def test_states_follow_the_connection(bench: Bench) -> None:
    backend = bench.serve(RamDisk())
    front = bench.connect()
    front.negotiate()
    assert eventually(lambda: backend.state == "negotiating")
    front.share_memory().start_ring()
    assert backend.wait_running(5)
    assert backend.state == "running"
    front.channel.close()
    assert eventually(lambda: backend.state == "listening")
