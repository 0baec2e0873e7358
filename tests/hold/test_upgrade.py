"""A new process in the place of one that serves: at SIGHUP, and whenever its code has changed."""

import os
import random
import signal
import socket
from pathlib import Path

from peer import wire
from peer.blk import Status, Type
from peer.numbers import Request as Message
from peer.writes import SLOTS, Load
from vhost_user.cli.control_client import Connection
from vhost_user.cli.exits import Failure

from .conftest import BACK_ENDS, IMAGE, assert_written
from .held import COMMAND, LIMIT, SOCKET, Held, sector

ROUNDS = 4

RAM = """
import vhost_user as vu

class Ram(vu.BlockDevice):
    def __init__(self, num_queues: int = 1):
        super().__init__(size=1 << 20, read_only=True, num_queues=num_queues)

    def read(self, offset, buf):
        buf[:] = b"{letter}" * len(buf)
"""


def test_an_upgrade_under_load_loses_no_request(folder: Path, back_end: list[str]) -> None:
    chance = random.Random(2)
    with Held.around(folder, *back_end) as held:
        front = held.connect().start()
        load = Load(front)
        for n in range(1, ROUNDS + 1):
            load.submit()
            load.take(chance.randrange(1, SLOTS))
            former = held.back_end()
            held.process.send_signal(signal.SIGHUP)
            held.assert_says(f" follows process {former}", 1)
            assert held.said.count(" follows process ") == n
            held.wait_until(lambda: held.children() == [held.back_end()], "the former's end")
        load.submit()
        load.finish()
        assert_written(folder, load)
        assert held.end() == 0


def test_an_upgrade_without_a_front_end_leaves_the_image_to_the_next(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        former = held.back_end()
        held.process.send_signal(signal.SIGHUP)
        held.assert_says(f" follows process {former}")
        front = held.connect().start()
        assert sector(front) == bytes(512)
        assert held.children() == [held.back_end()]


def test_a_disk_that_has_grown_by_an_upgrade_is_told(folder: Path) -> None:
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        front = held.connect().negotiate()
        ours, theirs = socket.socketpair()
        with ours:
            front.change(Message.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            theirs.close()
            question = wire.config(0, 8, bytes(8))
            before = front.channel.ask(Message.GET_CONFIG, question)[12:]
            with (folder / "disk.img").open("r+b") as image:
                image.truncate(2 << 20)
            held.process.send_signal(signal.SIGHUP)
            ours.settimeout(60)
            assert ours.recv(12) == bytes([2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            after = front.channel.ask(Message.GET_CONFIG, question)[12:]
        assert (before, after) == (bytes([0, 8] + [0] * 6), bytes([0, 16] + [0] * 6))
        front.channel.close()


def test_an_upgrade_that_does_not_start_leaves_the_present_one(folder: Path) -> None:
    script = folder / "serve"
    script.write_text(f"#!/bin/sh\nexec {' '.join([*COMMAND, 'blk', 'disk.img'])}\n")
    script.chmod(0o700)
    with Held.around(folder, "./serve") as held:
        front = held.connect().start()
        present = held.back_end()
        script.write_text("#!/bin/sh\nexit 3\n")
        held.process.send_signal(signal.SIGHUP)
        held.assert_says(
            f"the new back-end cannot follow: it has ended with status 3; process {present} goes on"
        )
        assert sector(front) == bytes(512)
        assert held.children() == [present]
        script.unlink()
        held.process.send_signal(signal.SIGHUP)
        held.assert_says("cannot run ./serve: No such file or directory")
        assert sector(front) == bytes(512)
        assert held.children() == [present]


def test_an_upgrade_to_a_smaller_device_leaves_the_present_one(folder: Path) -> None:
    script = folder / "serve"
    command = " ".join([*COMMAND, "run", "ram.py"])
    (folder / "ram.py").write_text(RAM.format(letter="a"))
    script.write_text(f"#!/bin/sh\nexec {command} num_queues=4\n")
    script.chmod(0o700)
    with Held.around(folder, "./serve") as held:
        front = held.connect().start(queues=2)
        front.channel.ask_u64(17)  # GET_QUEUE_NUM
        script.write_text(f"#!/bin/sh\nexec {command} num_queues=1\n")
        held.process.send_signal(signal.SIGHUP)
        held.assert_says("the new back-end cannot follow")
        assert sector(front, 1) == b"a" * 512


def test_changed_code_is_taken_up_and_wrong_code_is_not(folder: Path) -> None:
    """Changed within a second and as long as before: Python takes the old compiled code for that of
    such a file."""
    code = folder / "ram.py"
    code.write_text(RAM.format(letter="a"))
    second = code.stat().st_mtime_ns // 10**9 * 10**9
    os.utime(code, ns=(second, second))
    words = [*COMMAND, "run", "ram.py", "--reload", "--socket-path", SOCKET]
    with Held(folder, words) as held:
        held.assert_says("held for process")
        front = held.connect().start()
        assert sector(front) == b"a" * 512
        code.write_text("def wrong(:\n")
        held.assert_says("ram.py:1: invalid syntax")
        held.assert_says("the new back-end cannot follow")
        assert sector(front) == b"a" * 512
        changed = folder / "changed"
        changed.write_text(RAM.format(letter="b"))
        os.utime(changed, ns=(second + 1, second + 1))
        changed.rename(code)
        held.assert_says(" follows process ")
        assert sector(front) == b"b" * 512
        assert held.end(signal.SIGINT) == 0


def test_a_change_in_a_module_that_the_code_imports_is_seen(folder: Path) -> None:
    (folder / "letters.py").write_text("LETTER = b'a'\n")
    text = RAM.format(letter="x").replace('b"x"', "LETTER")
    (folder / "ram.py").write_text("from letters import LETTER\n" + text)
    words = [*COMMAND, "run", "ram.py:Ram", "--reload", f"--socket-path={SOCKET}"]
    with Held(folder, words) as held:
        held.assert_says("held for process")
        front = held.connect().start()
        (folder / "letters.py").write_text("LETTER = b'bb'[:1]\n")
        held.assert_says(" follows process ")
        assert sector(front) == b"b" * 512


def test_a_message_that_a_back_end_died_over_is_answered_by_the_next(folder: Path) -> None:
    """GET_VRING_BASE waits for a request that is never answered, and its process is killed."""
    body = """
import os
import vhost_user as vu
kept = []

class Keeping(vu.BlockDevice):
    def on_batch(self, batch):
        for request in batch:
            if os.path.exists("again"):
                request.fill(7)
            else:
                kept.append(request.defer())
                open("taken", "w").close()

vu.serve(Keeping(size=1 << 20))
"""
    (folder / "keeping.py").write_text(body)
    with Held.around(folder, COMMAND[0], "keeping.py") as held:
        front = held.connect().start()
        disk = front.blk()
        request = disk.prepare(Type.IN, 0, room=512)
        head = disk.submit(request)
        front.rings[0].kick()
        held.wait_until((folder / "taken").exists, "the request was taken")
        front.channel.command(11, bytes(8))  # GET_VRING_BASE
        (folder / "again").touch()
        os.kill(held.back_end(), signal.SIGKILL)
        answer = front.channel.answer_to(11)
        assert int.from_bytes(answer[4:8], "little") == 1
        (used,) = front.rings[0].wait(1, 60)
        result = disk.result(request)
        assert (used.head, result.status, result.data) == (head, Status.OK, b"\7" * 512)


def test_the_control_socket_is_that_of_the_back_end_that_serves(folder: Path) -> None:
    words = ["blk", IMAGE, "--hold", "--socket-path", SOCKET, "--control", "c.sock"]

    def is_taken_over() -> bool:
        try:
            with Connection(str(folder / "c.sock"), LIMIT) as server:
                return bool(server.ask({"do": "dump"})["pid"] == held.back_end())
        except Failure:
            return False

    with Held(folder, [*COMMAND, *words]) as held:
        held.assert_says("held for process")
        held.wait_until(is_taken_over, "the control socket")
        former = held.back_end()
        held.process.send_signal(signal.SIGHUP)
        held.assert_says(f" follows process {former}")
        held.wait_until(is_taken_over, "the next one's control socket")
        os.kill(held.back_end(), signal.SIGKILL)
        held.assert_says(" goes on")
        held.wait_until(is_taken_over, "the control socket after a death")
