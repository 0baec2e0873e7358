"""A device's own state is saved by one back-end and loaded by another."""

import logging
import os
import struct
import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import WANTED, FrontEnd
from peer.numbers import Request
from peer.process import eventually

from .disks import SIZE, RamDisk

DEVICE_STATE = 1 << 19


class Counter(vu.Device):
    """Counts, and says how far: a device of any type with a state."""

    device_id = 41
    state_version = 2

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.count = count
        self.threads: list[str] = []

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            self.count += 1
            request.complete()

    def save(self, out: BinaryIO, /) -> None:
        self.threads.append(threading.current_thread().name)
        out.write(b"count")
        out.write(struct.pack("<Q", self.count))

    def load(self, source: vu.StateReader, /) -> None:
        if source.read(5) != b"count":
            raise ValueError("no count")
        (self.count,) = struct.unpack("<Q", source.read(8))
        self.version = source.version


class Other(Counter):
    """The same under another name."""


class Next(Counter):
    """A later version."""

    state_name = "Counter"
    state_version = 3


class Former(Counter):
    """An earlier version."""

    state_name = "Counter"
    state_version = 1


def is_told(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


def saved(device: vu.Device, socket: Path) -> bytes:
    with vu.Backend(device, socket=socket), vu.Frontend.connect(str(socket)) as front:
        return front.save_state()


def load(state: bytes, device: vu.Device, socket: Path) -> None:
    with vu.Backend(device, socket=socket), vu.Frontend.connect(str(socket)) as front:
        front.load_state(state)


def test_what_save_writes_load_reads_elsewhere(vhost_socket: Path) -> None:
    source, destination = Counter(7), Counter()
    state = saved(source, vhost_socket)
    assert state.endswith(b"Counter" + b"count" + struct.pack("<Q", 7))
    load(state, destination, vhost_socket)
    assert destination.count == 7
    assert source.threads == ["vhost-user state"]


def test_a_later_version_is_told_which_one_has_saved(vhost_socket: Path) -> None:
    state = saved(Counter(7), vhost_socket)
    later = Next()
    load(state, later, vhost_socket)
    assert (later.count, later.version) == (7, 2)


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (Other(3), 'it is of a "Counter", this is a "Other"'),
        (Former(3), "it has version 2 of the device's own form, 1 and older are known here"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    device: Counter, why: str, vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(Counter(7), vhost_socket)
    with pytest.raises(vu.ProtocolError, match="CHECK_DEVICE_STATE: refused"):
        load(state, device, vhost_socket)
    eventually(lambda: why in caplog.text)
    assert device.count == 3


def test_what_load_raises_or_leaves_is_reported_and_fails_the_load(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Long(Counter):
        state_name = "Counter"

        def save(self, out: BinaryIO, /) -> None:
            super().save(out)
            out.write(b"more")

    class Wrong(Long):
        def save(self, out: BinaryIO, /) -> None:
            out.write(b"none!")

    for device, text in [(Long(), "load left 4 of 17 bytes unread"), (Wrong(), "no count")]:
        state = saved(device, vhost_socket)
        with pytest.raises(vu.ProtocolError):
            load(state, Counter(3), vhost_socket)
        eventually(partial(is_told, caplog, text))
    eventually(lambda: "not loaded: load has failed, as the log says" in caplog.text)


def test_what_save_raises_is_reported_and_fails_the_save(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Counter):
        def save(self, out: BinaryIO, /) -> None:
            out.write(b"half")
            raise OSError(28, "no space")

    class Returning(Counter):
        def save(self, out: BinaryIO, /) -> None:
            return b"state"  # type: ignore[return-value]

    for device, text in [(Broken(), "no space"), (Returning(), "save returned bytes")]:
        with pytest.raises(vu.ProtocolError, match="CHECK_DEVICE_STATE"):
            saved(device, vhost_socket)
        eventually(partial(is_told, caplog, text))


def test_a_state_of_more_than_256_mib_raises_where_it_is_written(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Endless(Counter):
        def save(self, out: BinaryIO, /) -> None:
            while True:
                out.write(bytes(64 << 20))

    with pytest.raises(vu.ProtocolError):
        saved(Endless(), vhost_socket)
    eventually(lambda: "at most 268435456 bytes, this one 335544320 by now" in caplog.text)


def test_save_and_load_go_together() -> None:
    class Saves(vu.Device):
        device_id = 41

        def on_queue(self, queue: vu.Queue, /) -> None: ...

        def save(self, out: BinaryIO, /) -> None: ...

    class Loads(vu.Device):
        device_id = 41

        def on_queue(self, queue: vu.Queue, /) -> None: ...

        def load(self, source: vu.StateReader, /) -> None: ...

    with pytest.raises(TypeError, match="Saves has no load"):
        vu.Backend(Saves(), socket=Path("state.sock"))
    with pytest.raises(TypeError, match="Loads has no save"):
        vu.Backend(Loads(), socket=Path("state.sock"))


def test_a_device_without_save_offers_no_transfer(vhost_socket: Path) -> None:
    with vu.Backend(vu.Rng(), socket=vhost_socket), vu.Frontend.connect(str(vhost_socket)) as front:
        assert not front.offered_protocol_features & DEVICE_STATE
        with pytest.raises(vu.NegotiationError, match="SET_DEVICE_STATE_FD"):
            front.save_state()


def test_no_other_callback_comes_beside_save(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Counter):
        def save(self, out: BinaryIO, /) -> None:
            entered.set()
            assert leave.wait(30)
            super().save(out)

        def read_config(self, offset: int, length: int, /) -> bytes:
            return bytes([offset] * length)

    device = Slow(5)
    device.config = b"abcd"
    reader, writer = os.pipe()
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate(protocol=WANTED | DEVICE_STATE)
        answer = front.channel.ask(Request.SET_DEVICE_STATE_FD, bytes(8), [writer])
        os.close(writer)
        assert answer == wire.u64(0x100)
        assert entered.wait(30)
        # The front-end is answered all the same, by what the device has said before.
        config = front.channel.ask(Request.GET_CONFIG, wire.config(1, 2, bytes(2)))
        assert config[12:] == b"bc"
        eventually(lambda: "read_config was not called: another callback" in caplog.text)
        leave.set()
        assert front.channel.ask_u64(Request.CHECK_DEVICE_STATE) == 0
        config = front.channel.ask(Request.GET_CONFIG, wire.config(1, 2, bytes(2)))
        assert config[12:] == b"\1\1"
    assert os.read(reader, 4096).endswith(struct.pack("<Q", 5))
    os.close(reader)


def test_save_may_stop_its_own_back_end(vhost_socket: Path) -> None:
    class Last(Counter):
        backend: vu.Backend

        def save(self, out: BinaryIO, /) -> None:
            self.backend.stop()
            super().save(out)

    device = Last(5)
    with (
        vu.Backend(device, socket=vhost_socket) as backend,
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        device.backend = backend
        front.negotiate(protocol=WANTED | DEVICE_STATE)
        reader, writer = os.pipe()
        front.channel.command(Request.SET_DEVICE_STATE_FD, bytes(8), [writer])
        os.close(writer)
        eventually(lambda: backend.state == "stopped")
        assert device.threads == ["vhost-user state"]
        os.close(reader)


class Cached(RamDisk):
    """A disk with a write cache, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = b""
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


class Marked(Cached):
    def save(self, out: BinaryIO, /) -> None:
        out.write(self.mark)

    def load(self, source: vu.StateReader, /) -> None:
        self.mark = source.read()


def connected(socket: Path) -> vu.VirtioBlkDriver:
    return vu.VirtioBlkDriver.connect(str(socket))


@pytest.mark.parametrize("kind", [Cached, Marked])
def test_a_disk_goes_on_with_the_cache_mode_that_its_driver_has_chosen(
    kind: type[Cached], vhost_socket: Path
) -> None:
    source, destination = kind(), kind()
    source.mark = b"of the source"
    with vu.Backend(source, socket=vhost_socket), connected(vhost_socket) as driver:
        driver.set_writeback(False)
        state = driver.save_state()
        flushes = source.flushes
        driver.pwrite(bytes(512), 0)
        assert source.flushes == flushes + 1, "it goes on as it was"
    with vu.Backend(destination, socket=vhost_socket), connected(vhost_socket) as driver:
        driver.pwrite(bytes(512), 0)
        assert destination.flushes == 0
        driver.load_state(state)
        driver.pwrite(bytes(512), 0)
        assert destination.flushes == 1
        assert driver.config(32, 1) == b"\0"
    assert destination.mark == (b"of the source" if kind is Marked else b"")


def test_a_disk_in_a_file_carries_its_cache_mode_too(tmp_path: Path, vhost_socket: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    disk = vu.FileDisk(image)
    with vu.Backend(disk, socket=vhost_socket), connected(vhost_socket) as driver:
        driver.set_writeback(False)
        state = driver.save_state()
        driver.set_writeback(True)
        driver.load_state(state)
        assert driver.config(32, 1) == b"\0"


def test_a_disk_whose_data_python_never_sees_has_no_save_of_its_own() -> None:
    with pytest.raises(TypeError, match="save would never be called"):

        class Disk(vu.FileDisk):
            def save(self, out: BinaryIO, /) -> None: ...


def test_states_of_disks_with_and_without_a_save_do_not_mix(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    state = saved(Cached(), vhost_socket)
    marked = Marked()
    with pytest.raises(vu.ProtocolError):
        load(state, marked, vhost_socket)
    eventually(lambda: 'it is of a "disk", this is a "Marked"' in caplog.text)
