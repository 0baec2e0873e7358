"""Forks of a process that serves: they have no part in its guests."""

import subprocess
from pathlib import Path

import pytest
import vhost_user as vu

from .driver import open_driver
from .programs import Programs, assert_prints, finish, line

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
    assert_prints(process, "child lived\nparent lived\n")


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


OPEN_FILES = """
def open_files():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the listing's own
"""

SERVE_IMAGE = f"""
{OPEN_FILES}
import multiprocessing, pathlib, subprocess
image = pathlib.Path(SOCKET + "-image")
image.write_bytes(bytes(1 << 20))
backend = vu.Backend(vu.FileDisk(image, direct=True), socket=SOCKET).start()
print("listening", flush=True)
sys.stdin.readline()

def shared():
    "What of the session a process has: what its descriptors and mappings are."
    names = list(open_files())
    names += [line.split(" ", 5)[-1].strip() for line in open("/proc/self/maps")]
    words = ("socket:", "memfd:peer-guest", str(image))
    return sorted({{word for word in words for name in names if word in name}})

def show(name):
    print(name, *shared(), flush=True)
"""

FORKS = {
    "os.fork": """
        if os.fork() == 0:
            show("child")
            os._exit(0)
        os.wait()
        """,
    "multiprocessing": """
        process = multiprocessing.get_context("fork").Process(target=show, args=("child",))
        process.start()
        process.join()
        """,
    "subprocess": """
        subprocess.run(["true"], preexec_fn=lambda: show("child"), close_fds=False, check=True)
        """,
    "a fork of a fork": """
        if os.fork() == 0:
            if os.fork() == 0:
                show("child")
                os._exit(0)
            os.wait()
            os._exit(0)
        os.wait()
        """,
}


@pytest.mark.parametrize("way", FORKS)
def test_a_fork_has_neither_connection_nor_listener_nor_image_nor_memory(
    vhost_socket: Path, programs: Programs, way: str
) -> None:
    fork = FORKS[way].replace("\n        ", "\n")
    process = programs.start(f"{SERVE_IMAGE}\n{fork}\nshow('parent')\nsys.stdin.readline()\n")
    assert line(process) == "listening"
    with open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        driver.wait()
        say(process)
        assert line(process) == "child"
        words = f"parent {vhost_socket}-image memfd:peer-guest socket:"
        assert line(process) == words
        read = driver.read(0, 512)
        driver.wait()
        assert read.status == 0, "the parent serves as before"
        say(process)


@pytest.mark.parametrize("end", ["backend.stop()", "os._exit(0)"], ids=["stop", "exit"])
def test_what_a_fork_outlives_is_over_for_all_others(
    vhost_socket: Path, programs: Programs, end: str
) -> None:
    process = programs.start(
        f"""{SERVE_IMAGE}
print("child", os.fork() or sys.stdin.readline(), flush=True)
backend.state
{end}
print("ended", flush=True)
sys.stdin.readline()
"""
    )
    assert line(process) == "listening"
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
        say(process)
        word, _child = line(process).split()
        assert word == "child"
        assert driver.front.channel.is_closed()
        # The image is closed after the connection.
        if end == "backend.stop()":
            assert line(process) == "ended"
        else:
            process.wait(10)
        image = Path(f"{vhost_socket}-image")
        with vu.Backend(vu.FileDisk(image), socket=vhost_socket) as backend:
            assert backend.state == "listening"


def test_a_fork_that_closes_everything_keeps_what_it_opens(
    vhost_socket: Path, programs: Programs
) -> None:
    """As daemons do: numbers that were the parent's are the child's own files by then."""
    process = programs.start(
        f"""{SERVE_IMAGE}
if os.fork() == 0:
    os.closerange(3, 1 << 16)
    own = [os.open(image, os.O_RDONLY) for _ in range(64)]
    if os.fork() == 0:
        print(all(os.readlink(f"/proc/self/fd/{{fd}}") == str(image) for fd in own), flush=True)
        del backend
        os.fstat(own[0]), os.fstat(own[-1])
        print("kept", flush=True)
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
sys.stdin.readline()
"""
    )
    assert line(process) == "listening"
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
        say(process)
        assert [line(process), line(process)] == ["True", "kept"]


def test_a_fork_has_no_part_in_a_front_end_of_its_parent(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        """
backend = vu.Backend(RamDisk(), socket=SOCKET).start()
driver = vu.VirtioBlkDriver.connect(SOCKET)
driver.pwrite(b"x" * 512, 0)
if os.fork() == 0:
    try:
        driver.pread(512, 0)
    except vu.VhostUserError as error:
        print(error, flush=True)
    sys.exit(0)
os.wait()
print(driver.pread(512, 0) == b"x" * 512, flush=True)
driver.close()
backend.stop()
"""
    )
    code, out, err = finish(process)
    assert code == 0, err
    assert out == (
        "this process was forked after the connection was made: it is the parent's. Connect in the "
        "child\nTrue\n"
    )


def test_forks_while_front_ends_come_and_go_have_none_of_them(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        f"""
{OPEN_FILES}
backend = vu.Backend(RamDisk(), socket=SOCKET).start()
def come_and_go():
    while not over:
        with open_driver(SOCKET) as driver:
            driver.read(0, 512)
            driver.wait()
over = False
child = os.fork()  # the front-end is another process: its own sockets are none of this one's
if child == 0:
    come_and_go()
for _ in range(60):
    forked = os.fork()
    if forked == 0:
        os._exit(any(name.startswith(("socket:", "/memfd:")) for name in open_files()))
    assert os.waitpid(forked, 0)[1] == 0
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
backend.stop()
print("done", flush=True)
"""
    )
    code, out, err = finish(process, 60)
    assert (code, out) == (0, "done\n"), err
