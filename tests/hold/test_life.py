"""What the keeper holds, and what is left of it and its back-ends."""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

from peer import wire
from peer.memory import PAGE, GuestMemory, Region
from peer.numbers import Request as Message
from peer.process import descriptors, eventually, guest_mappings, threads

from .conftest import BACK_ENDS
from .held import COMMAND, SOCKET, Held, sector

SLOTS = 509
"""What the back-end takes, as Linux's own vhost does."""


def test_the_keeper_maps_no_guest_memory_and_leaks_nothing(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        pid = held.process.pid
        before = kept(pid)
        for _ in range(3):
            front = held.connect().start(queues=2)
            held.kill_back_end()
            assert sector(front, 1) == bytes(512)
            assert guest_mappings(pid) == 0
            assert guest_mappings(held.back_end()) > 0
            front.channel.close()
            assert eventually(lambda: kept(pid) == before), f"{kept(pid)}, not {before}"


def test_the_next_back_end_inherits_its_socket_and_nothing_else(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        first = descriptors(held.back_end())
        front = held.connect().negotiate()
        held.kill_back_end()
        held.wait_until(lambda: descriptors(held.back_end()) == first, "the same descriptors")
        front.channel.close()


def kept(pid: int) -> tuple[Counter[str], int]:
    """Descriptors by their kind, and threads. A back-end's socket has a name of its own."""
    kinds = (re.sub(r"^/.*/socket", "socket", kind) for kind in descriptors(pid).elements())
    return Counter(kinds), threads(pid)


def test_as_many_regions_as_the_back_end_takes_are_told_again(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        apart = [Region((1 << 30) + n * 2 * PAGE, PAGE) for n in range(SLOTS - 1)]
        memory = GuestMemory(Region(0, 16 << 20), *apart)
        with held.connect(memory).negotiate() as front:
            slots = front.channel.ask_u64(Message.GET_MAX_MEM_SLOTS)
            assert slots == SLOTS
            for region in memory.regions:
                front.change(
                    Message.ADD_MEM_REG, wire.single_region(region.describe()), [region.fd]
                )
            front.start_ring()
            held.kill_back_end()
            assert sector(front) == bytes(512)


def test_the_same_process_serves_one_front_end_after_the_other(folder: Path) -> None:
    with Held.around(folder, *COMMAND, "run", "vhost_user.examples.ramdisk", "size=1M") as held:
        front = held.connect().start()
        front.blk().write(0, b"\5" * 512)
        front.channel.close()
        assert sector(held.connect().start()) == b"\5" * 512


def test_the_end_of_the_keeper_ends_the_back_end(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        front = held.connect().start()
        assert sector(front) == bytes(512)
        pid = held.back_end()
        assert held.end() == 0
        assert not Path(f"/proc/{pid}").exists()
        assert not held.socket.exists()


def test_a_keeper_that_is_killed_takes_its_back_end_along(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        pid = held.back_end()
        os.kill(held.process.pid, signal.SIGKILL)
        assert eventually(lambda: not is_alive(pid)), f"process {pid} is left behind"


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_the_next_back_end_leaves_an_image_alone_whose_guest_has_moved(folder: Path) -> None:
    """No ring runs here, so the lock is where the guest is; and the guest may come back."""
    destination = [*COMMAND, "blk", "disk.img", "--incoming"]
    with Held.around(folder, *BACK_ENDS["blk"], options=["--give-up-after=2"]) as held:
        front = held.connect().start()
        front.stop_ring()
        other = folder / "other"
        other.mkdir()
        (other / "disk.img").symlink_to(folder / "disk.img")
        with Held.around(other, *destination) as moved:
            there = moved.connect().start()
            assert sector(there) == bytes(512)
            held.kill_back_end()
            there.stop_ring()
        front.start_ring()
        assert sector(front) == bytes(512)


def test_the_next_back_end_has_its_image_while_another_one_waits_for_the_guest(
    folder: Path,
) -> None:
    with Held.around(folder, *BACK_ENDS["blk"], options=["--give-up-after=2"]) as held:
        front = held.connect().start()
        other = folder / "other"
        other.mkdir()
        (other / "disk.img").symlink_to(folder / "disk.img")
        with Held.around(other, *COMMAND, "blk", "disk.img", "--incoming"):
            held.kill_back_end()
            assert sector(front) == bytes(512)


def test_where_ends_of_children_are_ignored_they_are_seen_all_the_same(folder: Path) -> None:
    ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    execute = f"import os, signal, sys; {ignore}; os.execv(sys.argv[1], sys.argv[1:])"
    words = [*COMMAND, "hold", SOCKET, "--", *BACK_ENDS["blk"]]
    with Held(folder, [sys.executable, "-c", execute, *words]) as held:
        held.assert_says("held for process")
        front = held.connect().start()
        held.kill_back_end()
        assert sector(front) == bytes(512)


def test_a_command_that_is_away_for_a_moment_is_tried_again(folder: Path) -> None:
    """As while its package is replaced."""
    script, away = folder / "serve", folder / "away"
    script.write_text(f"#!/bin/sh\nexec {' '.join(BACK_ENDS['blk'])}\n")
    script.chmod(0o700)
    with Held.around(folder, "./serve", options=["--give-up-after=0"]) as held:
        front = held.connect().start()
        script.rename(away)
        os.kill(held.back_end(), signal.SIGKILL)
        held.assert_says("cannot run ./serve: No such file or directory; another try follows")
        away.rename(script)
        held.assert_says(" goes on, ")
        assert sector(front) == bytes(512)


def test_without_room_for_a_socket_the_present_back_end_goes_on_and_the_next_is_tried_again(
    folder: Path,
) -> None:
    """And the place of that room may have any name."""
    room = folder / ("long" * 30)
    room.mkdir()
    words = [*COMMAND, "hold", SOCKET, "--give-up-after=0", "--", *BACK_ENDS["blk"]]
    with Held(folder, words, TMPDIR=str(room)) as held:
        held.assert_says("held for process")
        front = held.connect().start()
        holds = kept(held.process.pid)
        room.rmdir()
        held.process.send_signal(signal.SIGHUP)
        held.assert_says(f"; process {held.back_end()} goes on")
        assert "cannot start " in held.said
        assert sector(front) == bytes(512)
        assert eventually(lambda: kept(held.process.pid) == holds)
        os.kill(held.back_end(), signal.SIGKILL)
        held.assert_says("; another try follows")
        room.mkdir()
        held.assert_says(" goes on, ")
        assert sector(front) == bytes(512)


def test_with_once_the_first_front_end_is_the_last(folder: Path) -> None:
    with Held(
        folder, [*COMMAND, "blk", "disk.img", "--hold", "--once", "--socket-path", SOCKET]
    ) as held:
        held.assert_says("held for process")
        front = held.connect().start()
        held.kill_back_end()
        assert sector(front) == bytes(512)
        front.channel.close()
        assert held.process.wait(60) == 0
