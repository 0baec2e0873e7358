"""What holds for every command that serves a device."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from peer.blk import Status, Type
from peer.front_end import FrontEnd
from peer.process import eventually
from peer.wire import Channel

from .command import LIMIT, Server, command, run

SECTOR = 512


def write_and_read(path: str) -> None:
    """Drives the disk at a socket with a front-end that shares no code with the package."""
    with FrontEnd.connect(path).start() as peer:
        check_data(peer)


def check_data(peer: FrontEnd) -> None:
    data = bytes(range(256)) * 2
    assert peer.blk().write(3, data).status == Status.OK
    result = peer.blk().read(3, SECTOR)
    assert (result.status, result.data) == (Status.OK, data)


def test_a_device_class_is_served(ram: str) -> None:
    with Server("run", ram, "size=64K", "--socket-path", "ram.sock") as server:
        assert server.first_line == "listening on ram.sock  blk 64 KiB 16 queues"
        write_and_read("ram.sock")
        assert server.end() == (0, "", "")
    assert not Path("ram.sock").exists()


def test_an_image_is_served_and_keeps_what_was_written(image: str) -> None:
    words = ["blk", "--blk-file", image, "--num-queues", "2", "--serial", "no 1"]
    with Server(*words, "--socket-path", "disk.sock") as server:
        assert server.first_line == "listening on disk.sock  blk 1 MiB 2 queues"
        with FrontEnd.connect("disk.sock").start(queues=2) as peer:
            assert peer.blk(1).write(9, b"\x5a" * SECTOR).status == Status.OK
            assert peer.blk(0).flush().status == Status.OK
            assert Path(image).read_bytes()[9 * SECTOR : 10 * SECTOR] == b"\x5a" * SECTOR
            assert peer.blk(0).get_id().data.rstrip(b"\0") == b"no 1"
        assert server.end() == (0, "", "")


def test_an_image_has_the_block_size_that_was_asked_for(image: str) -> None:
    words = ["blk", "--blk-file", image, "--socket-path", "disk.sock", "--block-size"]
    with Server(*words, "4K"):
        told = json.loads(run("info", "disk.sock", "--json").out)["block"]
        assert (told["blk_size"], told["physical_block_exp"]) == (4096, 0)
    with Path(image).open("ab") as file:
        file.write(bytes(512))
    what = "disk.img: its size of 1049088 bytes is no multiple of block_size, 4096"
    assert run(*words, "4K") == (1, "", f"vhost-user: {what}\n")


def test_a_read_only_image_is_not_written(image: str) -> None:
    Path(image).chmod(0o400)
    words = ["blk", "--image", image, "--read-only", "--socket-path", "disk.sock"]
    with Server(*words), FrontEnd.connect("disk.sock").start() as peer:
        assert peer.offered & 1 << 5
        assert peer.blk().write(0, b"\x5a" * SECTOR).status == Status.IOERR
        assert peer.blk().read(0, SECTOR).data == bytes(SECTOR)
    assert Path(image).read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_cleanly(ram: str, number: signal.Signals) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock"]
    with Server(*words) as server, FrontEnd.connect("ram.sock").start() as peer:
        check_data(peer)
        assert server.end(number) == (0, "", "")
        assert peer.channel.is_closed()
    assert not Path("ram.sock").exists()


SLOW = """
import os
import vhost_user as vu


class Slow(vu.BlockDevice):
    def __init__(self) -> None:
        super().__init__(size=4096, read_only=True)

    def read(self, offset, buf):
        with open("entered", "wb"):
            pass
        with open("gate", "rb") as gate:
            gate.read()
        buf[:] = b"s" * len(buf)
"""


def test_a_request_in_flight_is_finished_before_the_end() -> None:
    Path("slow.py").write_text(SLOW)
    os.mkfifo("entered")
    os.mkfifo("gate")
    words = ["run", "slow.py", "--socket-path", "slow.sock"]
    with Server(*words) as server, FrontEnd.connect("slow.sock").start() as peer:
        disk = peer.blk()
        request = disk.prepare(0, 0, room=SECTOR)
        disk.submit(request)
        disk.ring.kick()
        Path("entered").read_bytes()
        server.send(signal.SIGTERM)
        Path("gate").write_bytes(b"")
        (used,) = disk.ring.wait(1)
        result = disk.result(request, used.length)
        assert (result.status, result.data) == (Status.OK, b"s" * SECTOR)
        assert server.wait().status == 0


WAITING = """
import vhost_user as vu


class Waiting(vu.BlockDevice):
    def __init__(self) -> None:
        with open("entered", "wb"):
            pass
        open("gate", "rb")
"""


def test_a_signal_ends_a_server_that_still_makes_its_device() -> None:
    Path("waiting.py").write_text(WAITING)
    os.mkfifo("entered")
    os.mkfifo("gate")
    with subprocess.Popen(command("run", "waiting.py", "--socket-path", "w.sock")) as process:
        Path("entered").read_bytes()
        process.terminate()
        assert process.wait(LIMIT) == 0


FAILING = """
import vhost_user as vu


class Failing(vu.BlockDevice):
    def __init__(self) -> None:
        super().__init__(size=4096, read_only=True)

    def read(self, offset, buf):
        raise RuntimeError("worn out")
"""


def test_an_exception_is_reported_and_service_goes_on() -> None:
    Path("failing.py").write_text(FAILING)
    with Server("run", "failing.py", "--socket-path", "f.sock") as server:
        with FrontEnd.connect("f.sock").start() as peer:
            assert peer.blk().read(0, SECTOR).status == Status.IOERR
            assert peer.blk().read(0, SECTOR).status == Status.IOERR
        result = server.end()
    assert result.status == 0
    assert result.err.count("RuntimeError: worn out") == 1
    assert "read of 512 bytes at offset 0" in result.err


def test_an_exception_ends_a_server_that_was_told_so() -> None:
    Path("failing.py").write_text(FAILING)
    words = ["run", "failing.py", "--socket-path", "f.sock", "--on-error", "stop"]
    with Server(*words) as server, FrontEnd.connect("f.sock").start() as peer:
        request = peer.blk().prepare(0, 0, room=SECTOR)
        peer.blk().submit(request)
        peer.rings[0].kick()
        result = server.wait()
    assert result.status == 1
    assert result.err.endswith("vhost-user: Failing failed: RuntimeError: worn out\n")


def test_a_front_end_that_has_left_makes_way_for_the_next(ram: str) -> None:
    with Server("run", ram, "size=64K", "--socket-path", "ram.sock"):
        for _ in range(3):
            write_and_read("ram.sock")


def test_once_ends_with_the_first_front_end(ram: str) -> None:
    with Server("run", ram, "size=64K", "--socket-path", "ram.sock", "--once") as server:
        write_and_read("ram.sock")
        assert server.wait() == (0, "", "")


def test_log_records_come_from_the_level_that_was_asked_for(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock"]
    with Server(*words, "--log-level", "info") as server:
        write_and_read("ram.sock")
        result = server.end()
    assert "front-end connected" in result.err
    with Server(*words) as server:
        write_and_read("ram.sock")
        assert server.end().err == ""


def test_workers_are_tuned_as_asked(image: str) -> None:
    cpu = min(os.sched_getaffinity(0))
    words = ["blk", "--blk-file", image, "--num-queues", "3", "--socket-path", "d.sock"]
    options = ["--threads", "2", "--cpus", f"{cpu}", "--batch", "1", "--poll-us", "100"]
    with Server(*words, *options) as server, FrontEnd.connect("d.sock").start(queues=3) as peer:
        for index in range(3):
            assert peer.blk(index).read(0, SECTOR).status == Status.OK
        tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
        workers = [t for t in tasks if (t / "comm").read_text().startswith("vhost-user q")]
        assert len(workers) == 2
        assert {frozenset(os.sched_getaffinity(int(t.name))) for t in workers} == {frozenset([cpu])}
    result = run(*words, "--cpus", "9999")
    assert result == (1, "", "vhost-user: this process may not run on processor 9999\n")


def test_requests_have_as_long_to_come_back_as_asked(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import pathlib\n"
        "import vhost_user as vu\n"
        "class Stuck(vu.BlockDevice):\n"
        "    def __init__(self): super().__init__(size=4096, read_only=True); self.kept = []\n"
        "    def on_batch(self, batch):\n"
        "        self.kept += [request.defer() for request in batch]\n"
        "        pathlib.Path('held').touch()\n"
    )
    words = ["run", f"{tmp_path}/stuck.py:Stuck", "--socket-path", "s.sock", "--drain", "0.1"]
    with Server(*words) as server, FrontEnd.connect("s.sock").start() as peer:
        disk = peer.blk()
        request = disk.prepare(Type.IN, 0, room=SECTOR)
        disk.submit(request)
        peer.rings[0].kick()
        assert eventually(Path("held").exists)
        assert peer.stop_ring() == 1
        assert disk.result(request).status == Status.IOERR
        assert "queue 0: 1 request did not come back in time" in server.end().err


# The socket.


def test_the_socket_belongs_to_its_owner_unless_told_otherwise(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock"]
    with Server(*words):
        assert Path("ram.sock").stat().st_mode & 0o777 == 0o600
    with Server(*words, "--mode", "0660", "--group", str(os.getgid())):
        assert Path("ram.sock").stat().st_mode & 0o777 == 0o660


def test_a_dead_socket_is_replaced(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock"]
    with Server(*words) as server:
        server.process.kill()
        server.process.wait(LIMIT)
        assert Path("ram.sock").is_socket()
    with Server(*words):
        write_and_read("ram.sock")


def test_a_living_socket_is_not_stolen(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock"]
    with Server(*words):
        result = run(*words)
        assert result.status == 1
        assert result.err == "vhost-user: socket ram.sock is in use: somebody answers there\n"
        write_and_read("ram.sock")


def test_what_is_no_socket_is_left_alone(ram: str) -> None:
    Path("file").write_text("precious")
    Path("link").symlink_to("file")
    for name in ("file", "link"):
        result = run("run", ram, "size=64K", "--socket-path", name)
        assert result == (1, "", f"vhost-user: {name} exists and is not a socket\n")
    assert Path("file").read_text() == "precious"
    assert Path("link").is_symlink()


def test_a_socket_path_that_does_not_fit_is_an_error_with_both_lengths(ram: str) -> None:
    path = "a" * 108
    result = run("run", ram, "size=64K", "--socket-path", path)
    assert result.status == 1
    assert "socket path is too long: 108 bytes, at most 107 fit" in result.err


def test_a_directory_that_does_not_exist_is_an_error(ram: str) -> None:
    result = run("run", ram, "size=64K", "--socket-path", "none/ram.sock")
    assert result.status == 1
    assert "No such file or directory" in result.err
    assert result.err.count("\n") == 1


def test_a_front_end_that_listens_is_dialled(ram: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("vmm.sock")
        listener.listen()
        listener.settimeout(LIMIT)
        with Server("run", ram, "size=64K", "--socket-path", "vmm.sock", "--connect") as server:
            assert server.first_line == "calling vmm.sock  blk 64 KiB 16 queues"
            connected, _ = listener.accept()
            with FrontEnd(Channel(connected)).start() as peer:
                check_data(peer)
            assert server.end().status == 0


# Inherited descriptors.


def test_a_listening_socket_is_inherited(ram: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("given.sock")
        listener.listen()
        fd = listener.fileno()
        with Server("run", ram, "size=64K", "--fd", str(fd), pass_fds=[fd]) as server:
            assert server.first_line == f"serving descriptor {fd}  blk 64 KiB 16 queues"
            write_and_read("given.sock")
            write_and_read("given.sock")
            assert server.end() == (0, "", "")
        assert Path("given.sock").is_socket()


def test_a_connected_socket_is_served_until_its_end(ram: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        with Server("run", ram, "size=64K", "--fd", str(fd), pass_fds=[fd]) as server:
            theirs.close()
            with FrontEnd(Channel(ours)).start() as peer:
                check_data(peer)
            assert server.wait() == (0, "", "")


def test_a_service_managers_socket_is_served(ram: str) -> None:
    words = " ".join(command("run", ram, "size=64K"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("given.sock")
        listener.listen()
        fd = listener.fileno()
        script = f"exec 3<&{fd} {fd}<&-; export LISTEN_FDS=1 LISTEN_PID=$$; exec {words}"
        with subprocess.Popen(
            ["bash", "-c", script], pass_fds=[fd], stderr=subprocess.PIPE, text=True
        ) as process:
            write_and_read("given.sock")
            process.terminate()
            _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert said == "listening where the service manager does  blk 64 KiB 16 queues\n"


def test_a_descriptor_that_is_not_open_is_an_error(ram: str) -> None:
    result = run("run", ram, "size=64K", "--fd", "77")
    what = "descriptor 77 is not open here; let the parent process pass it on"
    assert result == (1, "", f"vhost-user: {what}\n")


def test_a_descriptor_that_is_no_socket_is_an_error(ram: str) -> None:
    with open("file", "wb") as file:
        fd = file.fileno()
        result = run("run", ram, "size=64K", "--fd", str(fd), pass_fds=[fd])
    assert result.status == 1
    assert "not a connected or listening unix stream socket: no socket at all" in result.err


# The image.


def test_a_second_back_end_on_an_image_is_refused(image: str) -> None:
    with Server("blk", "--blk-file", image, "--socket-path", "one.sock") as one:
        for also in ([], ["--read-only"]):
            result = run("blk", "--blk-file", image, "--socket-path", "two.sock", *also)
            assert result.status == 1
            assert "disk.img" in result.err
            assert f"it is in use: process {one.process.pid} (" in result.err
            assert result.err.count("\n") == 1
        assert not Path("two.sock").exists()
        write_and_read("one.sock")


def test_two_back_ends_may_read_an_image(image: str) -> None:
    words = ["blk", "--blk-file", image, "--read-only", "--socket-path"]
    with Server(*words, "one.sock") as one, Server(*words, "two.sock") as two:
        assert one.first_line.startswith("listening on one.sock")
        assert two.first_line.startswith("listening on two.sock")


def test_an_image_that_is_not_there_is_an_error_that_says_how_to_make_one() -> None:
    result = run("blk", "--blk-file", "none.img", "--socket-path", "x.sock")
    advice = "make one with: truncate --size 1G none.img"
    assert result == (1, "", f"vhost-user: none.img: No such file or directory; {advice}\n")


def test_a_disk_that_cannot_be_is_an_error(image: str) -> None:
    for option, value in (
        ("--num-queues", "0"),
        ("--queue-size", "100"),
        ("--serial", "x" * 21),
        ("--block-size", "1000"),
    ):
        result = run("blk", "--blk-file", image, "--socket-path", "x.sock", option, value)
        assert result.status == 2
        assert result.err.count("\n") == 1
    Path("folder").mkdir()
    result = run("blk", "--blk-file", "folder", "--socket-path", "x.sock")
    assert (result.status, result.err) == (1, "vhost-user: folder: Is a directory\n")


# Descriptors 0 to 2.


def test_a_server_works_with_its_standard_descriptors_closed(ram: str) -> None:
    words = " ".join(command("run", ram, "size=64K", "--socket-path", "ram.sock"))
    script = f"exec {words} <&- >&- 2>&-"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL) as process:
        assert eventually(Path("ram.sock").is_socket, LIMIT)
        write_and_read("ram.sock")
        held = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        process.terminate()
        assert process.wait(LIMIT) == 0
    assert held == ["/dev/null"] * 3


def test_an_error_with_standard_error_closed_is_still_a_status(ram: str) -> None:
    words = " ".join(command("run", ram, "size=1", "--socket-path", "ram.sock"))
    done = subprocess.run(["sh", "-c", f"exec {words} 2>&-"], timeout=LIMIT, check=False)
    assert done.returncode == 1


def test_nobody_reading_standard_error_is_no_reason_to_end(ram: str) -> None:
    with Server(
        "run", ram, "size=64K", "--socket-path", "ram.sock", "--log-level", "debug"
    ) as server:
        assert server.process.stderr is not None
        server.process.stderr.close()
        write_and_read("ram.sock")
        write_and_read("ram.sock")
        server.send(signal.SIGTERM)
        assert server.process.wait(LIMIT) == 0
        server.process.stderr = None


SAYS = """
import logging, sys, vhost_user as vu
class Says(vu.BlockDevice):
    def __init__(self, how: str):
        super().__init__(size=1 << 20, read_only=True)
        self.how = how
    def read(self, offset, buf):
        if self.how == "print":
            print("x" * 8192, file=sys.stderr, flush=True)
        elif self.how == "log":
            logging.warning("x" * 8192)
        else:
            raise ValueError("x" * 8192)
"""


PATIENT = """
import vhost_user.server
vhost_user.server.DRAIN = 3600.0  # who waits for that has failed
"""


@pytest.mark.parametrize(
    ("how", "signals"), [("raise", 1), ("log", 1), ("raise", 2), ("log", 2), ("print", 2)]
)
def test_a_reader_of_the_log_that_stalls_does_not_keep_a_server_from_its_end(
    tmp_path: Path, how: str, signals: int
) -> None:
    (tmp_path / "says.py").write_text(SAYS + (PATIENT if signals > 1 else ""))
    with (
        Server("run", "says.py", f"how={how}", "--socket-path", "says.sock") as server,
        FrontEnd.connect("says.sock").start() as front,
    ):
        assert server.process.stderr is not None
        fill(server.process.pid)
        driver = front.blk()
        for _ in range(8):
            driver.submit(driver.prepare(0, 0, room=512))
        driver.ring.kick()
        assert eventually(lambda: waits_for_the_reader(server.process.pid))
        for _ in range(signals):
            server.send(signal.SIGINT)
            assert eventually(lambda: not has_signal_to_come(server.process.pid))
        # 5 s for a request that waits, and moments for its last words: a minute is a hang.
        assert server.process.wait(60) == 0


def waits_for_the_reader(pid: int) -> bool:
    """Whether a thread is in a system call about standard error, as /proc/PID/syscall shows it."""
    calls = (task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/syscall"))
    return any(call[1:2] == ["0x2"] for call in calls)


def has_signal_to_come(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(line.startswith("ShdPnd:") and line.strip("ShdPn:\t0") for line in lines)


def fill(pid: int) -> None:
    """Fills the pipe that a process has for its standard error."""
    pipe = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, bytes(4096))
    os.close(pipe)


def test_no_descriptor_leaks_to_what_a_device_starts(image: str) -> None:
    words = ["blk", "--blk-file", image, "--socket-path", "disk.sock"]
    with Server(*words) as server, FrontEnd.connect("disk.sock").start() as peer:
        check_data(peer)
        folder = Path(f"/proc/{server.process.pid}")
        numbers = [int(name) for name in os.listdir(folder / "fd") if int(name) > 2]
        flags = [
            (folder / "fdinfo" / str(n)).read_text().split("flags:")[1].split()[0] for n in numbers
        ]
        assert flags
        assert all(int(flag, 8) & os.O_CLOEXEC for flag in flags)


def test_the_budgets_for_private_copies_are_options(ram: str) -> None:
    """A request over either of them fails, and the log names the option."""
    for option in ("--copy-budget", "--total-copy-budget"):
        words = ["run", ram, "size=64K", option, "1K", "--socket-path", "ram.sock"]
        with Server(*words) as server, FrontEnd.connect("ram.sock").start() as peer:
            assert [read_in_pieces(peer, length) for length in (1024, 2048)] == [0, 1]
            result = server.end()
        assert (result.status, result.out) == (0, "")
        assert f"{option} raises it" in result.err
        assert "2048 bytes" in result.err


def read_in_pieces(peer: FrontEnd, length: int) -> int:
    """Reads by two buffers that do not touch; gives the status."""
    disk = peer.blk()
    request = disk.prepare(0, 0, room=length + SECTOR)
    header, data, status = request.chain()
    half = data._replace(length=length // 2)
    other = half._replace(address=half.address + length // 2 + SECTOR)
    disk.ring.add([header, half, other, status])
    disk.ring.kick()
    disk.ring.wait(1)
    return disk.result(request).status
