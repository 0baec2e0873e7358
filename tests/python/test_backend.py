"""The life of a back-end in a process."""

import gc
import os
import socket as sockets
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.process import Holdings, eventually, settles

from .disks import RamDisk
from .driver import open_driver


def test_states_follow_one_another(vhost_socket: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=vhost_socket)
    states: list[str] = [backend.state]
    with backend:
        states.append(backend.state)
        assert not backend.wait_running(0)
        front = FrontEnd.connect(str(vhost_socket)).negotiate()
        assert eventually(lambda: backend.state == "negotiating")
        front.share_memory().start_ring()
        assert backend.wait_running(5)
        states.append(backend.state)
        front.close()
        assert eventually(lambda: backend.state == "listening")
    states.append(backend.state)
    assert states == ["new", "listening", "running", "stopped"]
    assert not backend.wait_running(5)
    backend.stop()


def test_a_front_end_may_come_back(vhost_socket: Path) -> None:
    device = RamDisk()
    with vu.Backend(device, socket=vhost_socket), vu.VirtioBlkDriver(vhost_socket) as disk:
        disk.pwrite(b"r" * 512, 0)
        for _ in range(3):
            assert disk.reconnect().pread(512, 0) == b"r" * 512


def test_without_keep_listening_the_end_comes_with_the_front_end(vhost_socket: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=vhost_socket, keep_listening=False).start()
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
    backend.run()
    assert backend.state == "stopped"


def test_run_works_in_any_thread_and_ends_with_stop(vhost_socket: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=vhost_socket)
    thread = threading.Thread(target=backend.run)
    thread.start()
    assert eventually(lambda: backend.state == "listening")
    backend.stop()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("by_itself", [True, False], ids=["by itself", "by stop"])
def test_a_back_end_that_has_ended_lets_go_of_its_image(
    vhost_socket: Path, tmp_path: Path, by_itself: bool
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    disk = vu.FileDisk(image)
    ended = vu.Backend(disk, socket=vhost_socket, keep_listening=not by_itself).start()
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
    if by_itself:
        assert eventually(lambda: ended.state == "stopped")
    else:
        ended.stop()
    disk.resize(512)
    with vu.Backend(vu.FileDisk(image), socket=vhost_socket) as other:
        assert (ended.state, other.state) == ("stopped", "listening")


def test_a_relative_path_stays_what_it_was_when_the_directory_changes(
    vhost_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vhost_socket.parent)
    backend = vu.Backend(RamDisk(), socket=vhost_socket.name).start()
    driver = vu.VirtioBlkDriver.connect(vhost_socket.name)
    monkeypatch.chdir("/")
    assert driver.reconnect().pread(512, 0) == bytes(512)
    driver.close()
    monkeypatch.chdir(vhost_socket.parent)
    front = vu.Frontend.connect(vhost_socket.name)
    monkeypatch.chdir("/")
    front.reconnect().close()
    backend.stop()
    assert not vhost_socket.exists()


def test_a_socket_is_removed_where_it_was_made_though_its_directory_has_moved(
    vhost_socket: Path,
) -> None:
    before, after = vhost_socket.parent / "before", vhost_socket.parent / "after"
    before.mkdir()
    with vu.Backend(RamDisk(), socket=before / "disk.sock"):
        before.rename(after)
        before.mkdir()
        (before / "disk.sock").touch()
    assert not (after / "disk.sock").exists()
    assert (before / "disk.sock").is_file(), "another's"


def test_a_back_end_that_calls_a_relative_path_calls_the_same_after_a_change_of_directory(
    vhost_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vhost_socket.parent)
    with vu.Backend(RamDisk(), socket=vhost_socket.name, connect=True):
        monkeypatch.chdir("/")
        with sockets.socket(sockets.AF_UNIX) as listener:
            listener.bind(str(vhost_socket))
            listener.listen()
            listener.settimeout(10)
            connection, _ = listener.accept()
            with connection, vu.VirtioBlkDriver(fd=connection.fileno()) as disk:
                assert disk.pread(512, 0) == bytes(512)


def test_a_started_back_end_that_is_dropped_warns_and_serves_on(vhost_socket: Path) -> None:
    device = RamDisk()
    backend = vu.Backend(device, socket=vhost_socket).start()
    with pytest.warns(ResourceWarning, match=r"was dropped without stop\(\), and serves on"):
        del backend
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
    with pytest.raises(vu.VhostUserError, match="served by another"):
        vu.Backend(device, socket=vhost_socket).start()
    core = device.served_by
    assert isinstance(core, vu._core.Backend)
    core.stop(5.0)


@pytest.mark.filterwarnings("error")
def test_a_back_end_that_does_not_serve_is_dropped_without_a_word(vhost_socket: Path) -> None:
    vu.Backend(RamDisk(), socket=vhost_socket)
    with vu.Backend(RamDisk(), socket=vhost_socket):
        pass
    with pytest.raises(ValueError, match="threads"):
        vu.Backend(RamDisk(), socket=vhost_socket, threads=0)

    def ends_by_itself() -> None:
        backend = vu.Backend(RamDisk(), socket=vhost_socket, keep_listening=False).start()
        with open_driver(vhost_socket):
            pass
        assert eventually(lambda: backend.state == "stopped")

    ends_by_itself()
    gc.collect()


def test_a_callback_may_stop_its_own_back_end(vhost_socket: Path) -> None:
    class Suicidal(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            backend.stop()

    backend = vu.Backend(Suicidal(), socket=vhost_socket).start()
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
        backend.run()
    assert backend.state == "stopped"


@pytest.mark.parametrize("listening", [True, False])
def test_a_socket_given_by_number_is_served(vhost_socket: Path, listening: bool) -> None:
    if listening:
        with sockets.socket(sockets.AF_UNIX) as ours:
            ours.bind(str(vhost_socket))
            ours.listen()
            with vu.Backend(RamDisk(), fd=ours.fileno()), open_driver(vhost_socket) as driver:
                driver.read(0, 512)
                driver.wait()
        return
    ours, theirs = sockets.socketpair()
    with (
        ours,
        theirs,
        vu.Backend(RamDisk(), fd=ours.fileno()),
        vu.VirtioBlkDriver(fd=theirs.fileno()) as disk,
    ):
        assert disk.pread(512, 0) == bytes(512)


def test_a_back_end_calls_a_front_end_that_listens(vhost_socket: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(vhost_socket))
        listener.listen()
        with vu.Backend(RamDisk(), socket=vhost_socket, connect=True):
            listener.settimeout(10)
            connection, _ = listener.accept()
            with connection, vu.VirtioBlkDriver(fd=connection.fileno()) as disk:
                assert disk.pread(512, 0) == bytes(512)


def test_the_socket_is_the_owner_s_alone(vhost_socket: Path) -> None:
    with vu.Backend(RamDisk(), socket=vhost_socket):
        assert stat.S_IMODE(vhost_socket.stat().st_mode) == 0o600
    with vu.Backend(RamDisk(), socket=vhost_socket, mode=0o660, group=str(os.getgid())):
        assert stat.S_IMODE(vhost_socket.stat().st_mode) == 0o660
    with pytest.raises(ValueError, match="no group"):
        vu.Backend(RamDisk(), socket=vhost_socket, group="no such group").start()


def test_wrong_options_are_refused(vhost_socket: Path) -> None:
    disk, path = RamDisk(), vhost_socket
    wrong: list[Callable[[], object]] = [
        lambda: vu.Backend(disk, socket=path, fd=3),
        lambda: vu.Backend(disk, fd=3, connect=True),
        lambda: vu.Backend(disk, socket=path, threads=0),
        lambda: vu.Backend(disk, socket=path, batch=0),
        lambda: vu.Backend(disk, socket=path, poll_us=-1),
        lambda: vu.Backend(disk, socket=path, cpus=[4095]).start(),
        lambda: vu.Backend(disk, socket=path, on_error="ignore").start(),  # type: ignore[arg-type]
        lambda: vu.Backend(disk).start(),
        lambda: vu.Backend(disk, socket="x" * 200).start(),
        lambda: vu.Backend(disk, fd=-1).start(),
    ]
    for make in wrong:
        with pytest.raises(ValueError, match=r"not|other|needs|107"):
            make()
    for drain in ("5", None):
        with pytest.raises(TypeError, match=f"drain is a number of seconds, as 5.0, not {drain!r}"):
            vu.Backend(disk, socket=path, drain=drain)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"not a socket"):
        vu.Backend(disk, socket="/").start()
    assert disk.served_by is None


def test_a_device_has_one_back_end_at_a_time_and_a_back_end_one_start(vhost_socket: Path) -> None:
    device = RamDisk()
    with vu.Backend(device, socket=vhost_socket) as backend:
        with pytest.raises(vu.VhostUserError, match="another"):
            vu.Backend(device, socket=f"{vhost_socket}2").start()
        with pytest.raises(vu.VhostUserError, match="once"):
            backend.start()
        with pytest.raises(OSError, match="in use"):
            vu.Backend(RamDisk(), socket=vhost_socket).start()
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()


def test_nothing_is_left_behind(vhost_socket: Path) -> None:
    def once() -> None:
        with (
            vu.Backend(RamDisk(num_queues=2), socket=vhost_socket),
            vu.VirtioBlkDriver(vhost_socket, num_queues=2) as disk,
        ):
            disk.pwrite(bytes(4096), 0)

    once()  # the log's thread stays
    before = Holdings.of(os.getpid())
    for _ in range(3):
        once()
    assert settles(os.getpid(), before) == ""


def test_a_disk_offers_a_queue_for_each_of_16_processors_and_has_a_thread_for_those_in_use(
    vhost_socket: Path,
) -> None:
    class Ram(RamDisk):
        def __init__(self) -> None:
            vu.BlockDevice.__init__(self, size=4096)
            self.mem = memoryview(bytearray(4096))

    def workers() -> set[str]:
        names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
        return {name for name in names if name.startswith("vhost-user q")}

    with vu.Backend(Ram(), socket=vhost_socket):
        with vu.VirtioBlkDriver(vhost_socket) as one:
            assert one.num_queues == 16
            one.pread(512, 0)
            assert workers() == {"vhost-user q0"}
        with vu.VirtioBlkDriver(vhost_socket, num_queues=16) as all_:
            all_.pread(512, 0)
            expected = {f"vhost-user q{number}" for number in range(16)}
            assert eventually(lambda: workers() == expected), workers()


def test_callbacks_of_a_device_do_not_overlap_unless_it_says_so(vhost_socket: Path) -> None:
    class Overlapping(RamDisk):
        inside = 0
        most = 0
        both = threading.Barrier(2)

        def read(self, offset: int, buf: memoryview, /) -> None:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.thread_safe:
                self.both.wait(5)
            else:
                os.sched_yield()  # gives the interpreter up, with a call in the middle
                threading.Event().wait(0.001)
            self.inside -= 1

    class Parallel(Overlapping):
        thread_safe = True
        both = threading.Barrier(2)

    for device, most in ((Overlapping(num_queues=2), 1), (Parallel(num_queues=2), 2)):
        with (
            vu.Backend(device, socket=vhost_socket),
            FrontEnd.connect(str(vhost_socket)).start(queues=2) as front,
        ):
            drivers = [front.blk(0), front.blk(1)]
            for driver in drivers:
                for _ in range(4):
                    driver.submit(driver.prepare(0, 0, room=512))
                driver.ring.kick()
            for driver in drivers:
                driver.ring.wait(4)
        assert device.most == most


def test_a_device_is_free_when_its_back_end_has_ended_by_itself(vhost_socket: Path) -> None:
    device = RamDisk()
    ended = vu.Backend(device, socket=vhost_socket, keep_listening=False).start()
    with open_driver(vhost_socket):
        pass
    assert eventually(lambda: ended.state == "stopped")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
        ended.stop()
        device.resize(2 * device.size)
