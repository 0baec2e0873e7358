"""Nothing that goes wrong is silent: a WARNING in the log, and in tests the cause of the error."""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.process import eventually

from .disks import SIZE, RamDisk
from .driver import open_driver
from .repeats import repeats

NEVER = 60.0
"""Seconds after which a test that waits for a stuck callback gives up."""


class Texts(logging.Handler):
    """The WARNINGs of the package, as they come."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def having(self, part: str) -> list[str]:
        return [text for text in self.texts if part in text]


@pytest.fixture
def log() -> Iterator[Texts]:
    handler, logger = Texts(), logging.getLogger("vhost_user")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def image(folder: Path, size: int = SIZE) -> Path:
    path = folder / "disk.img"
    path.write_bytes(bytes(size))
    return path


def failure(action: Callable[[], object]) -> BaseException:
    """What the driver raises."""
    with pytest.raises((vu.RequestError, TimeoutError)) as caught:
        action()
    return caught.value


# Refusals by the core.

DISKS: dict[str, Callable[[Path], vu.Device]] = {
    "Python": lambda _: RamDisk(read_only=True),
    "nothing": lambda _: vu.NullDisk(size=SIZE, read_only=True),
    "a file": lambda folder: vu.FileDisk(image(folder), read_only=True),
}


@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
def test_a_write_to_a_read_only_disk_is_told(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path, log: Texts, disk: Callable[[Path], vu.Device]
) -> None:
    driver = vhost_blk(disk(tmp_path))
    cause = failure(lambda: driver.pwrite(bytes(512), 0)).__cause__
    assert isinstance(cause, vu.GuestError)
    assert "queue 0: a write, and the disk is read-only" in str(cause)
    assert eventually(lambda: len(log.having("a write, and the disk is read-only")) == 1)
    assert [record.levelno for record in log.records] == [logging.WARNING]


@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
def test_a_read_past_the_end_is_told_with_its_numbers(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path, log: Texts, disk: Callable[[Path], vu.Device]
) -> None:
    driver = vhost_blk(disk(tmp_path))
    cause = failure(lambda: driver.pread(1024, SIZE - 512)).__cause__
    told = "a read of 1024 bytes at offset 1048064 ends past the 1048576 bytes of the disk"
    assert isinstance(cause, vu.GuestError)
    assert told in str(cause)
    assert eventually(lambda: len(log.having(told)) == 1)


def test_a_thousand_refusals_are_one_line_and_a_number(
    vhost_blk: vu.testing.BlkFactory, log: Texts
) -> None:
    driver = vhost_blk(RamDisk(read_only=True), on_error="report")
    report = driver.run_load("randwrite", ops=1000, verify="none")
    driver.close()
    driver.backend.stop()
    assert report.errors >= 1000
    first, *numbers = log.texts
    assert "refused: changes of a read-only disk: queue 0: a write" in first
    assert repeats(numbers, "refused: changes of a read-only disk") == report.errors - 1
    assert len(numbers) < 100


def test_a_driver_that_stops_its_queues_again_and_again_fills_no_log(
    vhost_blk: vu.testing.BlkFactory, log: Texts
) -> None:
    begun = time.monotonic()
    driver = vhost_blk(RamDisk(read_only=True), on_error="report")
    for _ in range(50):
        for _ in range(2):
            failure(lambda: driver.pwrite(bytes(512), 0))
        driver.reconnect()
    driver.close()
    driver.backend.stop()
    _, *numbers = log.texts
    assert repeats(numbers, "refused: changes of a read-only disk") == 99
    assert len(numbers) <= 1 + (time.monotonic() - begun) / 10


@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
def test_repeats_are_told_although_nothing_more_happens(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path, log: Texts, disk: Callable[[Path], vu.Device]
) -> None:
    driver = vhost_blk(disk(tmp_path), on_error="report")
    for _ in range(6):
        failure(lambda: driver.pwrite(bytes(512), 0))
    assert eventually(lambda: len(log.texts) == 2, 30)
    assert repeats(log.texts[1:], "refused: changes of a read-only disk") == 5


def test_a_request_that_is_too_long_has_a_cause(vhost_blk: vu.testing.BlkFactory) -> None:
    class Short(RamDisk):
        def __init__(self) -> None:
            super().__init__()
            self.max_request_bytes = 4096

    cause = failure(lambda: vhost_blk(Short()).pread(8192, 0)).__cause__
    assert isinstance(cause, vu.GuestError)
    assert "the device takes 4113 at most" in str(cause)


# What the host fails.


def test_an_error_of_the_host_is_told(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path, log: Texts
) -> None:
    path = image(tmp_path)
    driver = vhost_blk(vu.FileDisk(path))
    path.write_bytes(b"")
    error = failure(lambda: driver.pread(512, 4096))
    assert isinstance(error.__cause__, OSError)
    assert "read of 512 bytes at offset 4096, queue 0" in str(error.__cause__)
    assert eventually(lambda: len(log.having("read of 512 bytes at offset 4096, queue 0")) == 1)


@pytest.mark.parametrize("how", ["submit", "batch"])
def test_a_transfer_that_the_host_fails_is_told(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path, log: Texts, how: str
) -> None:
    with open(tmp_path / "written", "wb") as write_only:

        class Reads(RamDisk):
            def on_batch(self, batch: vu.BlockBatch, /) -> None:
                if how == "batch":
                    batch.preadv(write_only.fileno())
                else:
                    batch[0].submit(write_only.fileno())

        error = failure(lambda: vhost_blk(Reads()).pread(512, 0))
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EBADF
    told = "Reads.on_batch failed a request: Bad file descriptor (os error 9) (read of 512 bytes"
    assert eventually(lambda: len(log.having(told)) == 1)


# Requests that the device drops or fails.


class Deferring(RamDisk):
    """Keeps each request for another thread, which does something with it."""

    def __init__(self, end: Callable[[vu.BlockRequest], object]) -> None:
        super().__init__()
        self.end = end
        self.threads: list[threading.Thread] = []

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            self.threads.append(threading.Thread(target=self.end, args=(request.defer(),)))
            self.threads[-1].start()


def drop(_: vu.BlockRequest) -> None:
    """Leaves a request unanswered."""


def test_a_request_that_is_dropped_is_told(vhost_blk: vu.testing.BlkFactory, log: Texts) -> None:
    error = failure(lambda: vhost_blk(Deferring(drop)).pread(512, 1024))
    assert isinstance(error.__cause__, RuntimeError)
    assert "Deferring.on_batch: a deferred request was dropped without an answer" in str(
        error.__cause__
    )
    told = "it fails (read of 512 bytes at offset 1024, queue 0)"
    assert eventually(lambda: len(log.having(told)) == 1)


def test_an_error_number_from_another_thread_is_told_and_kept(
    vhost_blk: vu.testing.BlkFactory, log: Texts
) -> None:
    driver = vhost_blk(Deferring(lambda request: request.fail(errno.ENOSPC)))
    error = failure(lambda: driver.pread(512, 1024))
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENOSPC
    told = (
        "Deferring.on_batch failed a request: No space left on device (os error 28) "
        "(read of 512 bytes at offset 1024, queue 0)"
    )
    assert eventually(lambda: len(log.having(told)) == 1)


@pytest.mark.parametrize(
    ("reason", "number"),
    [
        (OSError(errno.ENOSPC, "no room"), errno.EIO),
        (OSError(errno.EOPNOTSUPP, "never"), errno.EOPNOTSUPP),
        (NotImplementedError("never"), errno.EOPNOTSUPP),
        (ValueError("a bug"), errno.EIO),
        (OSError("no number"), errno.EIO),
    ],
    ids=repr,
)
def test_an_exception_that_a_request_fails_with_is_its_cause(
    vhost_blk: vu.testing.BlkFactory, log: Texts, reason: Exception, number: int
) -> None:
    driver = vhost_blk(Deferring(lambda request: request.fail(reason)))
    error = failure(lambda: driver.pread(512, 0))
    assert isinstance(error, vu.RequestError)
    assert error.errno == number
    assert error.__cause__ is reason
    told = f"Deferring.on_batch failed a request with {type(reason).__name__} (read of 512 bytes"
    assert eventually(lambda: len(log.having(told)) == 1)
    (record,) = log.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert record.exc_info[1] is reason


def test_a_request_that_its_callback_fails_is_told_too(
    vhost_blk: vu.testing.BlkFactory, log: Texts
) -> None:
    class Failing(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                request.fail()

    error = failure(lambda: vhost_blk(Failing()).pread(512, 0))
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EIO
    assert eventually(lambda: len(log.having("Failing.on_batch failed a request: Input/")) == 1)


def test_many_requests_that_fail_are_a_line_for_each_number_and_a_count(
    vhost_blk: vu.testing.BlkFactory, log: Texts
) -> None:
    class Failing(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for number, request in enumerate(batch):
                request.fail(errno.ENOSPC if number % 2 else errno.EIO)

    driver = vhost_blk(Failing(), on_error="report")
    report = driver.run_load(ops=1000, verify="none")
    driver.close()
    driver.backend.stop()
    numbers = [text for text in log.texts if "more times" in text]
    assert len(log.texts) - len(numbers) == 2
    assert repeats(numbers, "Failing.on_batch failed a request: ") == report.errors - 2
    assert {record.levelno for record in log.records} == {logging.WARNING}


def test_fail_takes_nothing_else_and_leaves_the_request_open(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    told: list[str] = []

    def misuse(request: vu.BlockRequest) -> None:
        for wrong in ("no room", OSError, 1.5):
            with pytest.raises(TypeError) as caught:
                request.fail(wrong)  # type: ignore[arg-type]
            told.append(str(caught.value))
        request.fill(7)
        request.complete()

    assert vhost_blk(Deferring(misuse)).pread(512, 0) == b"\x07" * 512
    assert told[0] == (
        'fail takes an errno, as errno.EIO, or an exception, as OSError(5, "worn out"), '
        "not 'no room'"
    )


@pytest.mark.parametrize("number", [-5, 0, 4096, 2**31 - 1, 2**31])
def test_a_number_that_is_no_errno_is_refused_and_leaves_the_request_open(
    vhost_blk: vu.testing.BlkFactory, number: int
) -> None:
    told: list[str] = []

    def misuse(request: vu.BlockRequest) -> None:
        with pytest.raises(ValueError, match="errno") as caught:
            request.fail(number)
        told.append(str(caught.value))
        request.fill(7)
        request.complete()

    assert vhost_blk(Deferring(misuse)).pread(512, 0) == b"\x07" * 512
    assert told == [f"fail takes an errno from 1 to 4095, as errno.EIO, not {number}"]


@pytest.mark.parametrize("chained", ["cause", "context"])
def test_what_the_exception_was_raised_from_holds_no_view_either(
    vhost_blk: vu.testing.BlkFactory, chained: str
) -> None:
    def fill(view: memoryview) -> None:
        view[:] = bytes(1)

    def answer(request: vu.BlockRequest) -> None:
        try:
            try:
                fill(request.data)
            except ValueError as inner:
                outer = OSError(errno.EIO, "outer")
                if chained == "cause":
                    raise outer from inner
                raise outer  # noqa: B904
        except OSError as error:
            request.fail(error)

    error = failure(lambda: vhost_blk(Deferring(answer)).pread(512, 0))
    assert isinstance(error, vu.RequestError)
    assert isinstance(error.__cause__, OSError)


def test_the_exception_that_a_request_fails_with_holds_no_view_of_it(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    def fail(request: vu.BlockRequest) -> None:
        view = request.data
        try:
            view[:] = bytes(1)
        except ValueError as error:
            request.fail(error)

    error = failure(lambda: vhost_blk(Deferring(fail)).pread(512, 0))
    assert isinstance(error, vu.RequestError)
    assert isinstance(error.__cause__, ValueError)


def test_an_answer_that_comes_too_late_is_not_told(vhost_socket: Path, log: Texts) -> None:
    kept: list[vu.BlockRequest] = []
    device = Deferring(kept.append)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        assert eventually(lambda: len(kept) == 1)
        kept[0].complete()
        with pytest.raises(vu.StaleRequestError):
            kept[0].fail(OSError(errno.EIO, "late"))
    assert log.having("failed a request") == []


# Callbacks that do not return.


class Stuck(RamDisk):
    """Waits in the middle of a read."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def read(self, offset: int, buf: memoryview, /) -> None:
        self.waits_here()

    def waits_here(self) -> None:
        self.entered.set()
        self.go_on.wait(NEVER)


@contextmanager
def stuck() -> Iterator[Stuck]:
    device = Stuck()
    try:
        yield device
    finally:
        device.go_on.set()


def test_a_callback_that_does_not_return_is_told_once_with_its_stack(
    vhost_socket: Path, log: Texts
) -> None:
    with vu.Backend(device := Stuck(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        assert eventually(lambda: bool(log.having("has not returned")), 20)
        device.go_on.set()
        driver.wait()
    (told,) = log.having("has not returned")
    assert "Stuck.read has not returned for over 5 s" in told
    stack = [line.split()[-1] for line in told.splitlines() if line.startswith("  File")]
    assert stack[:2] == ["read", "waits_here"]
    assert {record.levelno for record in log.records} == {logging.WARNING}


@pytest.mark.parametrize("name", ["on_queue", "on_disconnect"])
def test_other_callbacks_that_do_not_return_are_told_too(
    vhost_socket: Path, log: Texts, name: str
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        entered.set()
        go_on.wait(NEVER)

    own: dict[str, Any] = {"device_id": 2, "on_queue": lambda *_: None}
    wait.__name__ = name
    wait.__code__ = wait.__code__.replace(co_name=name)
    device = type("Waiting", (vu.Device,), own | {name: wait})()
    backend = vu.Backend(device, socket=vhost_socket).start()
    try:
        with open_driver(vhost_socket) as driver:
            driver.read(0, 512)
            assert name != "on_queue" or entered.wait(NEVER)
        assert eventually(lambda: bool(log.having(f"Waiting.{name} has not returned")), 20)
    finally:
        go_on.set()
        backend.stop()


class Unhurried(RamDisk):
    """Takes its time for each of the next reads."""

    slow_reads = 0

    def read(self, offset: int, buf: memoryview, /) -> None:
        if self.slow_reads:
            self.slow_reads -= 1
            time.sleep(0.75)
        super().read(offset, buf)


def test_callbacks_that_return_in_time_are_not_told_though_all_together_take_long(
    vhost_blk: vu.testing.BlkFactory, log: Texts
) -> None:
    """They are of one batch."""
    driver = vhost_blk(device := Unhurried(), timeout=NEVER)
    driver.run_load("read", ops=20000, depth=128, verify="none")
    device.slow_reads = 10
    report = driver.run_load("read", ops=128, depth=128, verify="none")
    assert (report.errors, device.slow_reads) == (0, 0)
    driver.close()
    driver.backend.stop()
    assert log.having("has not returned") == []


def test_a_driver_that_gives_up_shows_where_the_callback_is(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    with stuck() as device:
        driver = vhost_blk(device, timeout=0.5)
        failure(lambda: driver.pread(512, 0))
        assert device.entered.wait(NEVER)
        error = failure(lambda: driver.pread(512, 0))
    assert isinstance(error, TimeoutError)
    told = str(error.__cause__)
    assert told.startswith("Stuck.read has not returned")
    assert "in waits_here" in told
