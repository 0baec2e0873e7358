"""The end of a program that serves a device: by its last line, an exit, an error or a signal."""

import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer.blk import Status, Type
from peer.front_end import FrontEnd
from peer.process import eventually

EXIT_SECONDS = 5.0
DISK = """
import logging, os, sys, threading, time
import vhost_user as vu

class Disk(vu.BlockDevice):
    release = threading.Event()
    def read(self, offset, buf):
        if offset >= 512 * 1024:
            print("inside", flush=True)
            self.wait()
        buf[:] = bytes([0x21]) * len(buf)
    def write(self, offset, buf):
        pass
    def wait(self):
        self.release.wait()

backend = vu.Backend(Disk(size=1 << 20), socket=sys.argv[1])
"""
SLEEPS = 1024
"""A sector whose read sleeps in its callback."""


class Program:
    """A program that serves `DISK` and ends as its last lines say."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.socket = folder / "disk.sock"
        code = DISK + textwrap.dedent(ending)
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", code, str(self.socket)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert eventually(self.socket.exists, 10), self.log()
        self.front = FrontEnd.connect(str(self.socket)).start()

    def log(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def sleep_in_a_callback(self) -> None:
        """A request is in flight, and Python code runs for it."""
        assert self.process.stdout is not None
        disk = self.front.blk()
        disk.submit(disk.prepare(Type.IN, SLEEPS, room=512))
        disk.ring.kick()
        assert self.process.stdout.readline() == b"inside\n"

    def signals_pending(self) -> int:
        """Signals that the program has not taken yet, as a mask."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.findall(r"^ShdPnd:\s+(\w+)$", status, re.MULTILINE)[0], 16)

    def go_on(self) -> None:
        """Lets the program pass its `sys.stdin.readline()`."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def ends(self, seconds: float = EXIT_SECONDS) -> int:
        """Waits for the end; gives the exit status."""
        status = self.process.wait(seconds)
        assert not re.search("Fatal Python error|panicked|Segmentation", self.log()), self.log()
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.front.close()


@pytest.fixture
def program(request: pytest.FixtureRequest, socket_folder: Path) -> Iterator[Program]:
    running = Program(socket_folder, request.param)
    assert running.front.blk().read(0, 512).data == b"\x21" * 512
    yield running
    running.close()


ENDINGS = {
    "end of script": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "unhandled exception": ("raise RuntimeError('the end')", 1),
    "del": ("del backend", 0),
}
WITH_START = "backend.start()\nsys.stdin.readline()\n"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a callback"])
@pytest.mark.parametrize(
    ("program", "status"),
    [pytest.param(WITH_START + end, status, id=name) for name, (end, status) in ENDINGS.items()],
    indirect=["program"],
)
def test_a_program_that_ends_with_a_running_device_ends(
    program: Program, status: int, busy: bool
) -> None:
    """In time, with its own exit status, and without its socket."""
    if busy:
        program.sleep_in_a_callback()
    program.go_on()
    assert program.ends(EXIT_SECONDS * (2 if busy else 1)) == status, program.log()
    assert not program.socket.exists()
    assert program.front.channel.is_closed()


RUN = "backend.run()\nprint('after', flush=True)\n"
QUICK = "Disk.wait = lambda self: time.sleep(0.2)\n" + RUN


@pytest.mark.parametrize("program", [RUN], indirect=True, ids=["run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_run_cleanly(program: Program, number: int) -> None:
    program.process.send_signal(number)
    assert program.ends() == 0
    assert program.process.stdout is not None
    assert program.process.stdout.read() == b"after\n"
    assert not program.socket.exists()


@pytest.mark.parametrize("program", [QUICK], indirect=True, ids=["run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_in_flight_finish(program: Program, number: int) -> None:
    """The request whose callback runs is answered well; the program then ends with status 0."""
    disk = program.front.blk()
    request = disk.prepare(Type.IN, SLEEPS, room=512)
    disk.submit(request)
    disk.ring.kick()
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == b"inside\n"
    program.process.send_signal(number)
    disk.ring.wait(1)
    assert disk.result(request).status == Status.OK
    assert program.ends() == 0


@pytest.mark.parametrize("program", [RUN], indirect=True, ids=["run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_run_although_a_callback_sleeps(program: Program, number: int) -> None:
    program.sleep_in_a_callback()
    program.process.send_signal(number)
    assert eventually(lambda: program.signals_pending() == 0)
    program.process.send_signal(number)
    assert program.ends() in (0, -number, 128 + number)


@pytest.mark.parametrize("program", [RUN], indirect=True, ids=["run"])
def test_a_signal_ends_run_in_the_end_although_a_callback_sleeps(program: Program) -> None:
    """The wait for requests in flight is bounded."""
    program.sleep_in_a_callback()
    program.process.send_signal(signal.SIGTERM)
    assert program.ends(15) == 0
    assert not program.socket.exists()


TICKING = """
import signal
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
backend.start()
sys.stdin.readline()
signal.setitimer(signal.ITIMER_REAL, 0)
backend.stop()
print(len(ticks) > 10, flush=True)
"""


@pytest.mark.parametrize("program", [TICKING], indirect=True, ids=["ticking"])
def test_a_timer_signal_every_millisecond_disturbs_no_request(program: Program) -> None:
    disk = program.front.blk()
    for sector in range(300):
        assert disk.read(sector, 512).data == b"\x21" * 512
        assert disk.write(sector, bytes(512)).status == Status.OK
    program.go_on()
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == b"True\n"
    assert program.ends() == 0


BROKEN_STREAMS = """
sys.stderr.close(); sys.stdout.close()
backend.run()
"""


@pytest.mark.parametrize("program", [BROKEN_STREAMS], indirect=True, ids=["no streams"])
def test_a_program_without_its_streams_serves_and_ends(program: Program) -> None:
    assert program.front.blk().read(4, 512).status == Status.OK
    program.process.send_signal(signal.SIGTERM)
    assert program.ends() == 0
