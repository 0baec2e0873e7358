"""Forks of a process that serves: they have no part in its guests."""

import subprocess
from pathlib import Path

import pytest

from .driver import open_driver
from .programs import Programs, finish, line

HOLD = """
import multiprocessing
class Holding(vu.BlockDevice):
    def __init__(self):
        super().__init__(size=1 << 20)
        self.held = []
        self.holding = True
        self.arrived = threading.Event()
    def on_batch(self, batch):
        for request in batch:
            if self.holding:
                self.held.append(request.defer())
                self.arrived.set()
            else:
                request.fill(0x77)
                request.complete()
device = Holding()
backend = vu.Backend(device, socket=SOCKET).start()
print("listening", flush=True)
device.arrived.wait()
request = device.held[0]
view = request.data
view[:] = b"\\x55" * 512

def raised(call):
    try:
        return f"no error: {call()}"
    except Exception as error:
        return type(error).__name__

def child():
    maps = open("/proc/self/maps").read()
    guest = "guest" if "peer-guest" in maps else "no guest"
    seen = "zeroes" if bytes(view) == bytes(512) else "data"
    view[:] = b"\\x66" * 512
    calls = [
        lambda: request.copy_from(b"\\x66" * 512),
        request.complete,
        lambda: backend.state,
        backend.stop,
    ]
    print(guest, seen, *map(raised, calls), sep=",", flush=True)
"""

WAYS = {
    "os.fork": """
        pid = os.fork()
        if pid == 0:
            child()
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        """,
    "multiprocessing": """
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        print(process.exitcode, flush=True)
        """,
}

FINISH = """
sys.stdin.readline()
device.holding = False
view.release()
request.complete()
sys.stdin.readline()
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_fork_has_no_guest_memory_and_answers_nothing(
    vhost_socket: Path, programs: Programs, way: str
) -> None:
    process = programs.start("\n".join([HOLD, WAYS[way].replace("\n        ", "\n"), FINISH]))
    assert line(process) == "listening"
    with open_driver(vhost_socket) as driver:
        request = driver.read(0, 512)
        assert line(process).split(",") == [
            "no guest",
            "zeroes",
            "StaleRequestError",
            "StaleRequestError",
            "VhostUserError",
            "VhostUserError",
        ]
        assert line(process) == "0"
        assert driver.ring.used_index == 0
        assert request.data == b"\x55" * 512
        assert vhost_socket.is_socket()
        say(process)
        driver.wait()
        assert (request.status, request.data) == (0, b"\x55" * 512)
        second = driver.read(0, 512)
        driver.wait()
        assert (second.status, second.data) == (0, b"\x77" * 512)
        say(process)
        code, _, err = finish(process)
        assert code == 0, err


def say(process: subprocess.Popen[str]) -> None:
    """Lets the program go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_fork_may_serve_a_guest_of_its_own_and_survives_it(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        """
def serve_and_cut(name):
    backend = vu.Backend(RamDisk(), socket=name).start()
    with open_driver(name) as driver:
        driver.read(0, 512)
        driver.wait()
        os.ftruncate(driver.front.memory.fds[0], 0)
        driver.ring.kick()
        assert driver.front.channel.is_closed()
    backend.stop()

first = vu.Backend(RamDisk(), socket=SOCKET).start()
with open_driver(SOCKET) as driver:
    driver.read(0, 512)
    driver.wait()
    pid = os.fork()
    if pid == 0:
        serve_and_cut(SOCKET + "2")
        print("child lived", flush=True)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    driver.read(0, 512)
    driver.wait()
first.stop()
serve_and_cut(SOCKET)
print("parent lived", flush=True)
""",
    )
    code, out, err = finish(process)
    assert (code, out) == (0, "child lived\nparent lived\n"), err


def test_a_fork_neither_sends_nor_takes(vhost_socket: Path, programs: Programs) -> None:
    """Nor does it wait for the lock that another thread had when it was forked."""
    process = programs.start(
        """
        from peer.front_end import FrontEnd
        from peer.ring import Segment
        from python.receivers import Port
        LENGTH, COUNT = 8 << 20, 100
        device, chunk = Port(), bytes([1]) * LENGTH
        with vu.Backend(device, socket=SOCKET), FrontEnd.connect(SOCKET).start(2, 256) as front:
            # All in the same place, so that the copy takes a while.
            place, ring = front.memory.allocate(LENGTH), front.rings[0]
            ring.offer(*(ring.lay([Segment(place, LENGTH, True)]) for _ in range(COUNT + 1)))
            ring.kick()
            device.hears("buffers 0")
            send = lambda: device.rx.send(*[chunk] * COUNT, max_buffers=COUNT)
            sender = threading.Thread(target=send)
            sender.start()
            deadline = time.monotonic() + 10
            while front.memory.read(place, 1) != b"\\1":
                assert time.monotonic() < deadline
            pid = os.fork()
            if pid == 0:
                signal.alarm(5)
                found = device.rx.send(b"child"), device.rx.take()
                os._exit(0 if found == (0, None) else 1)
            print("the child ended with", os.waitpid(pid, 0)[1], flush=True)
            sender.join()
            assert len(ring.wait(COUNT)) == COUNT
            assert device.rx.send(b"parent") == 1
            assert ring.wait()[0].length == 6
        print("done", flush=True)
        """
    )
    code, out, err = finish(process, 60)
    assert (code, out) == (0, "the child ended with 0\ndone\n"), out + err
