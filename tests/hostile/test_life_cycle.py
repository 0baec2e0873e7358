"""Ends of a queue and of a virtual machine, with requests in flight."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import wire
from peer.blk import Status, Type
from peer.numbers import Request
from peer.process import eventually, guest_mappings

from .server import Server


@pytest.mark.victim("holding")
def test_the_base_is_answered_once_nothing_is_in_flight(server: Server) -> None:
    front = server.started(size=256)
    disk, ring = front.blk(), front.rings[0]
    for n in range(64):
        disk.submit(disk.prepare(Type.IN, n, room=512))
    ring.kick()
    assert server.awaits("held", 64)
    front.channel.send(wire.frame(Request.GET_VRING_BASE, wire.state(0, 0)))
    assert eventually(front.channel.is_taken)
    server.check_witness()
    assert front.channel.silent()
    assert server.ask("release") == []
    assert front.channel.answer_to(Request.GET_VRING_BASE) == wire.state(0, 64)
    assert ring.used_index == 64


@pytest.mark.victim("holding")
def test_the_base_is_answered_in_the_end_though_requests_never_end(server: Server) -> None:
    """The wait is bounded: they fail, and completing later raises and touches nothing."""
    front = server.started(size=256)
    disk, ring = front.blk(), front.rings[0]
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    ring.kick()
    assert server.awaits("held", 1)
    front.channel.socket.settimeout(30)
    front.channel.send(wire.frame(Request.GET_VRING_BASE, wire.state(0, 0)))
    assert front.channel.answer_to(Request.GET_VRING_BASE) == wire.state(0, 1)
    server.check_witness()
    errors = server.ask("release")
    assert len(errors) == 1
    result = disk.result(request)
    assert (result.status, result.data) == (Status.IOERR, b"\xa5" * 512)
    assert ring.used_index == 1


GUEST = """
import sys
sys.path.insert(0, sys.argv[1])
from peer.blk import Type
from peer.front_end import FrontEnd
front = FrontEnd.connect(sys.argv[2]).start(size=256)
for n in range(64):
    front.blk().submit(front.blk().prepare(Type.OUT, n, b"\\x99" * 512))
front.rings[0].kick()
print("submitted", flush=True)
sys.stdin.read()
"""


def kill_guest(server: Server, in_flight: Callable[[], bool]) -> None:
    """Another process submits 64 writes and is killed once they are in flight."""
    tests = str(Path(__file__).parent.parent)
    guest = subprocess.Popen(
        [sys.executable, "-c", GUEST, tests, server.path()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guest.stdout is not None
    assert guest.stdout.readline() == b"submitted\n"
    assert in_flight()
    guest.kill()
    guest.communicate()


def test_a_killed_front_end_loses_no_acknowledged_write_and_the_next_is_served(
    server: Server,
) -> None:
    assert server.started().blk().write(100, b"\x99" * 512).status == 0
    server.hang_up()
    kill_guest(server, lambda: True)
    assert server.started().blk().read(100, 512).data == b"\x99" * 512
    assert guest_mappings(server.pid) == 2


@pytest.mark.victim("holding")
def test_requests_of_a_killed_front_end_end_without_it(server: Server) -> None:
    """They complete with an error or not at all, and hold up nobody."""
    kill_guest(server, lambda: server.awaits("held", 64))
    server.check_witness()
    front = server.connect()
    front.channel.socket.settimeout(15)  # the former session may drain first
    front.negotiate()
    errors = server.ask("release")
    assert len(errors) in (0, 64)
    front.share_memory().start_ring()
    assert front.blk().read(0, 512).status == 0
