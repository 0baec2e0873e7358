"""What the keeper does not go on with: it says so, and takes the next front-end."""

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peer import wire
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message

from .conftest import BACK_ENDS
from .held import COMMAND, SOCKET, Held, sector

WITHOUT_RECORDS = """
import socket, struct
listener = socket.socket(fileno=3)
U64 = {1: 1 << 32 | 1 << 30, 15: 0x9, 17: 1, 40: 0}
while True:
    peer, _ = listener.accept()
    while len(head := peer.recv(12, socket.MSG_WAITALL)) == 12:
        request, flags, size = struct.unpack("=III", head)
        payload = peer.recv(size, socket.MSG_WAITALL) if size else b""
        if request in U64 or flags & 8:
            peer.send(struct.pack("=IIIQ", request, 5, 8, U64.get(request, 0)))
"""
"""A back-end that takes all and tracks nothing: REPLY_ACK and MQ are all that it has."""


def test_a_back_end_that_records_nothing_is_not_followed(folder: Path) -> None:
    (folder / "plain.py").write_text(WITHOUT_RECORDS)
    with Held.around(folder, sys.executable, "plain.py") as held:
        held.assert_says("does not record requests in flight (INFLIGHT_SHMFD)")
        front = held.connect().start()
        os.kill(held.back_end(), signal.SIGKILL)
        assert front.channel.is_closed()
        held.assert_says("the requests that were in flight are not known")
        # Whoever has no ring yet notices nothing.
        other = held.connect().negotiate().share_memory()
        held.kill_back_end()
        assert other.channel.ask_u64(Message.GET_FEATURES) == 1 << 32 | 1 << 30
        other.channel.close()


def test_front_ends_that_are_hung_up_on_are_a_hundred_lines_and_a_number(folder: Path) -> None:
    """What `hold` says, and what its back-end does."""
    times = 300
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        for _ in range(times):
            with held.connect() as front:
                front.negotiate()
                assert front.is_dropped(Message.SET_VRING_NUM, wire.state(77, 1))
        assert held.end() == 0
        said = held.said
    lines = [line for line in said.splitlines() if "the front-end was hung up on" in line]
    older = [re.search(r"\(and (\d+) more like it before\)$", line) for line in lines]
    assert 100 <= len(lines) <= 130
    assert len(lines) + sum(int(found[1]) for found in older if found) == times
    assert said.count("refused: SET_VRING_NUM") <= 130


def test_a_back_end_that_offers_less_is_not_followed(folder: Path) -> None:
    script = folder / "serve"
    command = " ".join([*COMMAND, "blk", "disk.img"])
    script.write_text(f"#!/bin/sh\nexec {command}\n")
    script.chmod(0o700)
    with Held.around(folder, "./serve") as held:
        front = held.connect().start()
        script.write_text(f"#!/bin/sh\nexec {command} --num-queues 1\n")
        os.kill(held.back_end(), signal.SIGKILL)
        assert front.channel.is_closed()
        held.assert_says("the front-end was hung up on: the back-end lacks")
        assert sector(held.connect().start()) == bytes(512)


def test_back_ends_that_die_at_once_are_given_up(folder: Path) -> None:
    script = folder / "serve"
    script.write_text(f"#!/bin/sh\nexec {' '.join([*COMMAND, 'blk', 'disk.img'])}\n")
    script.chmod(0o700)
    with Held.around(folder, "./serve", options=["--give-up-after", "3"]) as held:
        front = held.connect().start()
        script.write_text("#!/bin/sh\nexit 9\n")
        os.kill(held.back_end(), signal.SIGKILL)
        assert front.channel.is_closed()
        assert held.process.wait(60) == 1
        assert (
            "3 back-ends in a row have died within 1 s, the last one has ended with status 9"
            in (held.said)
        )
        assert not held.socket.exists()


def test_a_refused_message_ends_the_connection_as_without_a_keeper(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        front = held.connect().negotiate()
        assert front.is_refused(Message.SET_VRING_NUM, wire.state(0, 3))
        assert front.is_refused(Message.SET_VRING_NUM, wire.state(70000, 64))
        assert front.is_refused(99)
        front.share_memory().start_ring()
        assert sector(front) == bytes(512)
        front.channel.command(Message.SET_VRING_NUM, wire.state(1, 3))
        assert front.channel.is_closed()
        held.assert_says("the front-end was hung up on: the back-end refuses SET_VRING_NUM")
        assert sector(held.connect().start()) == bytes(512)


@pytest.mark.parametrize(
    "bytes_sent",
    [b"\x01\0\0\0\x05\0\0\0\0\0\0\0", b"\x01\0\0\0\x01\0\0\0\xff\xff\0\0"],
    ids=["a reply", "too long"],
)
def test_what_is_no_message_ends_the_connection(folder: Path, bytes_sent: bytes) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(held.socket))
            sock.sendall(bytes_sent)
            assert sock.recv(1) == b""
        held.assert_says("the front-end was hung up on: ")
        assert sector(held.connect().start()) == bytes(512)


def test_what_cannot_be_held_is_hidden(folder: Path) -> None:
    command = [*COMMAND, "blk", "disk.img", "--xen"]
    with Held.around(folder, *command) as held:
        assert re.search(r"held for process \d+, without (PAGEFAULT, )?XEN_MMAP: ", held.said)
        front = held.connect().negotiate()
        hidden = 1 << 17
        assert not front.protocol_offered & hidden
        assert front.is_refused(Message.SET_PROTOCOL_FEATURES, wire.u64(front.protocol | hidden))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["hold", SOCKET], "a command is needed behind --"),
        (["hold", SOCKET, "--"], "a command is needed behind --"),
        (["hold", SOCKET, "--socket-path", "b", "--", "true"], "not both"),
        (["hold", "--", "true"], "--socket-path PATH or --fd N: one is needed"),
        (["hold", SOCKET, "vhost-user", "blk"], "unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    folder: Path, words: list[str], problem: str
) -> None:
    with Held(folder, [*COMMAND, *words]) as held:
        assert held.process.wait(60) == 2
        assert problem in held.said
        assert held.said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["./nothing"], "cannot run ./nothing: No such file or directory"),
        (["false"], "the back-end does not start: it has ended with status 1"),
        ([*COMMAND, "blk", "absent.img"], "absent.img"),
    ],
)
def test_a_back_end_that_cannot_be_had_ends_the_command(
    folder: Path, command: list[str], problem: str
) -> None:
    with Held(folder, [*COMMAND, "hold", SOCKET, "--", *command]) as held:
        assert held.process.wait(60) == 1
        assert problem in held.said
        assert "Traceback" not in held.said
        assert not held.socket.exists()


@contextmanager
def notified(folder: Path) -> Iterator[socket.socket]:
    """A service manager's socket for notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.settimeout(60)
        yield sock


def test_a_service_manager_hears_of_the_start_an_upgrade_and_the_end(folder: Path) -> None:
    target = ["vhost_user.examples.ramdisk", "size=1M"]
    words = [*COMMAND, "run", *target, "--hold", "--socket-path", SOCKET]
    with (
        notified(folder) as sock,
        Held(folder, words, NOTIFY_SOCKET=str(folder / "notify")) as held,
    ):
        assert sock.recv(100) == b"READY=1"
        held.process.send_signal(signal.SIGHUP)
        assert sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert sock.recv(100) == b"READY=1"
        held.process.send_signal(signal.SIGTERM)
        assert sock.recv(100) == b"STOPPING=1"
        assert held.process.wait(60) == 0


def test_protocol_features_that_are_held_are_shown(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        offered = held.connect().negotiate().protocol_offered
        assert offered & ProtocolFeature.INFLIGHT_SHMFD
        assert offered & ProtocolFeature.CONFIGURE_MEM_SLOTS
