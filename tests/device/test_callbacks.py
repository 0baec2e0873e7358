"""Callbacks that raise, forget, answer twice, answer late, sleep, or stop their own back-end."""

import asyncio
import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import vhost_user as vu
from peer.blk import CANARY, BlkDriver, Status, Type
from peer.process import eventually

from .conftest import SIZE, Bench, Drive, RamDisk

SOAK = os.environ.get("VHOST_USER_SOAK") == "1"


class RaisingDisk(RamDisk):
    """Reads raise what it was made with."""

    def __init__(self, error: BaseException, **options: Any) -> None:
        super().__init__(**options)
        self.error = error

    def read(self, offset: int, buf: memoryview, /) -> None:
        raise self.error


class KeepingDisk(RamDisk):
    """Keeps each request for the test to answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: list[vu.BlockRequest] = []

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        self.kept.extend(request.defer() for request in batch)

    def wait(self, count: int) -> list[vu.BlockRequest]:
        """Waits until so many requests are kept."""
        assert eventually(lambda: len(self.kept) >= count)
        return self.kept


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), Status.IOERR),
        (OSError(errno.EIO, "no"), Status.IOERR),
        (OSError(errno.ENOSPC, "no"), Status.IOERR),
        (NotImplementedError("no"), Status.UNSUPP),
        (MemoryError(), Status.IOERR),
        (RecursionError(), Status.IOERR),
        (StopIteration(), Status.IOERR),
        (GeneratorExit(), Status.IOERR),
        (asyncio.CancelledError(), Status.IOERR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_an_exception_becomes_the_status_of_its_request(
    drive: Drive, error: BaseException, status: Status
) -> None:
    disk = drive(RaisingDisk(error)).blk()
    result = disk.read(8, 4096)
    assert (result.status, result.used) == (status, 1)
    assert disk.write(8, bytes(4096)).status == Status.OK


def test_a_kind_of_exception_is_reported_once_in_full(
    drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    """With operation, offset and queue; a thousand repeats (10,000 with VHOST_USER_SOAK=1) add no
    further traceback, and each fails."""
    caplog.set_level(logging.DEBUG, "vhost_user")
    disk = drive(RaisingDisk(ValueError("a mistake"))).blk()
    for _ in range(10_000 if SOAK else 1000):
        request = disk.prepare(Type.IN, 24, room=512)
        assert disk.run(request).status == Status.IOERR
    assert eventually(lambda: "a mistake" in caplog.text)
    tracebacks = [record for record in caplog.records if "a mistake" in text_of(record)]
    assert len(tracebacks) == 1
    text = text_of(tracebacks[0])
    assert "Traceback" in text
    assert "read" in text
    assert str(24 * 512) in text


def text_of(record: logging.LogRecord) -> str:
    return logging.Formatter().format(record)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_programs_stops_the_back_end(
    bench: Bench, error: type[BaseException]
) -> None:
    front = bench.drive(RaisingDisk(error()))
    backend = bench.backend
    disk = front.blk()
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    front.rings[0].kick()
    assert eventually(lambda: backend.state == "stopped")
    assert front.channel.is_closed()


def drop_one(disk: BlkDriver, device: KeepingDisk) -> None:
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    disk.ring.kick()
    device.wait(1).clear()
    (used,) = disk.ring.wait(1)
    assert disk.result(request, used.length) == (Status.IOERR, bytes([CANARY]) * 512, 1)


def test_requests_that_are_dropped_unanswered_fail(drive: Drive) -> None:
    """More of them than the ring has entries: no slot is lost."""
    device = KeepingDisk()
    disk = drive(device).blk()
    for _ in range(disk.ring.size + 1):
        drop_one(disk, device)
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    disk.ring.kick()
    device.wait(1).pop().complete()
    disk.ring.wait(1)
    assert disk.result(request).status == Status.OK


def test_a_dropped_request_is_told(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    drop_one(disk, device)
    assert eventually(lambda: "KeepingDisk.on_batch: a deferred request was" in caplog.text)


def test_a_request_completes_once(drive: Drive) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    disk.ring.kick()
    (kept,) = device.wait(1)
    kept.complete()
    for again in (kept.complete, kept.fail):
        with pytest.raises(vu.StaleRequestError):
            again()
    disk.ring.wait(1)
    assert disk.result(request).status == Status.OK
    assert disk.ring.used_index == 1


def test_of_many_threads_that_complete_a_request_one_succeeds(drive: Drive) -> None:
    """16 threads, 200 requests; 100,000 with VHOST_USER_SOAK=1."""
    device = KeepingDisk()
    disk = drive(device).blk()
    threads = 16
    barrier = threading.Barrier(threads + 1)
    successes: list[int] = []
    count = 100_000 if SOAK else 200
    current: list[vu.BlockRequest] = []

    def complete() -> None:
        for _ in range(count):
            barrier.wait()
            try:
                current[0].complete()
            except vu.StaleRequestError:
                pass
            else:
                successes.append(1)
            barrier.wait()

    workers = [threading.Thread(target=complete) for _ in range(threads)]
    for worker in workers:
        worker.start()
    request = disk.prepare(Type.IN, 0, room=512)
    for turn in range(count):
        disk.submit(request)
        disk.ring.kick()
        current[:] = device.wait(1)
        device.kept.clear()
        barrier.wait()
        barrier.wait()
        disk.ring.wait(1)
        assert len(successes) == turn + 1
    for worker in workers:
        worker.join()
    current.clear()
    assert disk.ring.used_index == count & 0xFFFF


@pytest.mark.parametrize("end", ["disconnect", "stop"])
def test_completing_after_the_end_raises_and_touches_nothing(bench: Bench, end: str) -> None:
    """What is copied that late goes nowhere."""
    device = KeepingDisk()
    front = bench.drive(device)
    disk = front.blk()
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    disk.ring.kick()
    (kept,) = device.wait(1)
    if end == "stop":
        bench.backend.stop(drain=0.1)
    else:
        front.channel.close()
        assert eventually(lambda: bench.backend.state == "listening", 10)
    with contextlib.suppress(vu.VhostUserError):
        kept.copy_from(bytes(512))
    with pytest.raises(vu.StaleRequestError):
        kept.complete()
    assert disk.result(request) == (CANARY, bytes([CANARY]) * 512, 0)
    assert disk.ring.used_index == 0
    device.kept.clear()


class SleepingDisk(RamDisk):
    """A read of sector 0 sleeps until the test lets it go."""

    thread_safe = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asleep = threading.Event()
        self.wake = threading.Event()

    def read(self, offset: int, buf: memoryview, /) -> None:
        if offset == 0:
            self.asleep.set()
            self.wake.wait()
        super().read(offset, buf)


def test_a_callback_that_sleeps_holds_up_only_its_queue(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """And `stop` returns when its deadline is over, and says what was left."""
    caplog.set_level(logging.DEBUG, "vhost_user")
    device = SleepingDisk(num_queues=2)
    front = bench.drive(device, queues=2)
    backend = bench.backend
    try:
        front.blk(0).submit(front.blk(0).prepare(Type.IN, 0, room=512))
        front.rings[0].kick()
        assert device.asleep.wait(5)
        for _ in range(10):
            assert front.blk(1).read(8, 512, 1.0).status == Status.OK
            bench.check_witness()
        stopped = run_in_thread(lambda: backend.stop(drain=0.5))
        assert stopped.wait(10)
        bench.check_witness()
        assert eventually(lambda: "queue 0: 1 request did not come back" in caplog.text)
    finally:
        device.wake.set()


def run_in_thread(body: Callable[[], object]) -> threading.Event:
    """Runs something beside the test; the event tells when it has returned."""
    done = threading.Event()

    def run() -> None:
        body()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


@pytest.mark.parametrize("taken", [0, 1])
def test_requests_of_a_queue_whose_callback_raises_go_back(drive: Drive, taken: int) -> None:
    """All of them, whether it had taken them or not: the driver may not kick again."""

    class Raising(vu.Device):
        device_id = 4

        def on_queue(self, queue: vu.Queue, /) -> None:
            queue.batch(taken)
            raise ValueError("no")

    front = drive(Raising())
    disk, ring = front.blk(), front.rings[0]
    requests = [disk.prepare(Type.IN, 0, room=512) for _ in range(3)]
    for request in requests:
        disk.submit(request)
    ring.kick()
    ring.wait(3)
    assert {front.memory.read(request.status, 1) for request in requests} == {bytes([CANARY])}


def test_callbacks_of_a_device_do_not_overlap(drive: Drive) -> None:
    """Two queues, and a device that has not said that it is safe for threads."""

    class Careless(RamDisk):
        inside = 0
        overlapped = False

        def read(self, offset: int, buf: memoryview, /) -> None:
            self.inside += 1
            self.overlapped |= self.inside > 1
            threading.Event().wait(0.001)
            self.inside -= 1

    device = Careless(num_queues=2)
    front = drive(device, queues=2)
    for index in (0, 1):
        for _ in range(16):
            front.blk(index).submit(front.blk(index).prepare(Type.IN, 0, room=512))
        front.rings[index].kick()
    for index in (0, 1):
        front.rings[index].wait(16)
    assert not device.overlapped


def test_a_callback_may_stop_its_own_back_end(bench: Bench) -> None:
    class Stopping(RamDisk):
        backend: vu.Backend | None = None

        def read(self, offset: int, buf: memoryview, /) -> None:
            assert self.backend is not None
            self.backend.stop(drain=0.5)

    device = Stopping()
    front = bench.drive(device)
    device.backend = bench.backend
    front.blk().submit(front.blk().prepare(Type.IN, 0, room=512))
    front.rings[0].kick()
    assert eventually(lambda: bench.backend.state == "stopped")
    assert front.channel.is_closed()
    device.backend = None


def test_a_stopped_back_end_can_be_stopped_again(bench: Bench) -> None:
    bench.drive(RamDisk())
    backend = bench.backend
    for _ in range(3):
        backend.stop(drain=0.5)
    assert backend.state == "stopped"


def test_many_back_ends_come_and_go(bench: Bench) -> None:
    for _ in range(20):
        front = bench.drive(RamDisk())
        assert front.blk().read(0, 512).status == Status.OK
        bench.backend.stop(drain=0.5)
        assert front.channel.is_closed()
        front.close()


# Arguments.

BAD_SOURCES = [
    pytest.param(bytes(1 << 20), ValueError, id="too long"),
    pytest.param(memoryview(bytes(8192))[::2], (ValueError, BufferError), id="not contiguous"),
    pytest.param("text", TypeError, id="text"),
    pytest.param(None, TypeError, id="nothing"),
    pytest.param([1, 2, 3], TypeError, id="a list"),
]


@pytest.mark.parametrize(("source", "error"), BAD_SOURCES)
def test_a_source_that_does_not_fit_is_an_error_and_writes_nothing(
    drive: Drive, source: Any, error: Any
) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    request = disk.prepare(Type.IN, 0, room=4096)
    disk.submit(request)
    disk.ring.kick()
    (kept,) = device.wait(1)
    with pytest.raises(error):
        kept.copy_from(source)
    assert disk.memory.read(request.data, 4096) == bytes([CANARY]) * 4096
    kept.complete()
    device.kept.clear()
    disk.ring.wait(1)


BAD_TARGETS = [
    pytest.param(bytes(4096), (TypeError, BufferError), id="read-only"),
    pytest.param("text", TypeError, id="text"),
]


@pytest.mark.parametrize(("target", "error"), BAD_TARGETS)
def test_a_target_that_does_not_fit_is_an_error(drive: Drive, target: Any, error: Any) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    disk.submit(disk.prepare(Type.OUT, 0, bytes(4096)))
    disk.ring.kick()
    (kept,) = device.wait(1)
    with pytest.raises(error):
        kept.copy_to(target)
    kept.complete()
    device.kept.clear()
    disk.ring.wait(1)


def test_a_short_target_takes_what_fits(drive: Drive) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    disk.submit(disk.prepare(Type.OUT, 0, b"\x31" * 4096))
    disk.ring.kick()
    (kept,) = device.wait(1)
    target = bytearray(10)
    assert kept.copy_to(memoryview(target)[:6]) == 6
    assert target == b"\x31" * 6 + bytes(4)
    kept.complete()
    device.kept.clear()
    disk.ring.wait(1)


@pytest.mark.parametrize("offset", [-1, 1 << 63, 1 << 64, 1 << 70])
@pytest.mark.parametrize("call", ["preadv", "pwritev"])
def test_a_file_offset_out_of_range_is_an_error(
    drive: Drive, tmp_path: Any, call: str, offset: int
) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    kind = (
        disk.prepare(Type.IN, 0, room=512)
        if call == "preadv"
        else disk.prepare(Type.OUT, 0, bytes(512))
    )
    disk.submit(kind)
    disk.ring.kick()
    (kept,) = device.wait(1)
    with (
        open(tmp_path / "file", "w+b") as file,
        pytest.raises((ValueError, OverflowError, OSError)),
    ):
        getattr(kept, call)(file.fileno(), offset)
    kept.complete()
    device.kept.clear()
    disk.ring.wait(1)


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_a_descriptor_that_is_not_open_is_an_error(drive: Drive, fd: int) -> None:
    device = KeepingDisk()
    disk = drive(device).blk()
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    disk.ring.kick()
    (kept,) = device.wait(1)
    with pytest.raises((OSError, ValueError)):
        kept.preadv(fd)
    kept.fail()
    device.kept.clear()
    disk.ring.wait(1)


@pytest.mark.parametrize(
    "options",
    [
        {"size": -1},
        {"size": 1 << 64},
        {"size": 511},
        {"size": SIZE, "block_size": 0},
        {"size": SIZE, "block_size": 513},
        {"size": SIZE, "num_queues": 0},
        {"size": SIZE, "num_queues": 1 << 16},
        {"size": SIZE, "queue_size": 100},
        {"size": SIZE, "queue_size": 1 << 16},
        {"size": SIZE, "serial": "x" * 21},
        {"size": "1M"},
        {"size": SIZE, "unknown": 1},
    ],
    ids=str,
)
def test_a_device_that_cannot_be_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        vu.BlockDevice(**options)
