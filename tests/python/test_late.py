"""With the write cache off a write is on stable storage when the driver hears of it, also when it
is stored after its callback: its view was kept, or the request."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.blk import CONFIG_WRITEBACK, BlkFeature, Status
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.process import eventually

from .disks import RamDisk
from .driver import OpenDriver, OpenRequest
from .panics import panics

LIMIT = 10.0


class LateDisk(RamDisk):
    """Notes when it stores and when it is flushed, and how many answers the driver had then."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []
        self.requests: list[vu.BlockRequest] = []
        self.some = threading.Semaphore(0)
        self.events: list[tuple[str, int]] = []
        self.answers: Callable[[], int] = lambda: 0
        self.failure: BaseException | None = None

    def note(self, what: str) -> None:
        self.events.append((what, self.answers()))

    def keep(self, view: memoryview) -> None:
        self.views.append(view)
        self.some.release()

    def store(self) -> None:
        """Stores what is kept, at the disk's start, and lets go of it."""
        view = self.views.pop()
        self.note("store")
        self.mem[: len(view)] = view
        view.release()

    def flush(self) -> None:
        self.note("flush")
        if self.failure is not None:
            raise self.failure


class Keeping(LateDisk):
    """Keeps the view of each write."""

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.keep(buf[:])

    def answer(self) -> None:
        self.store()


class KeepingInBatches(LateDisk):
    """The same by the batch."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            if request.op == "write":
                self.keep(request.data)

    def answer(self) -> None:
        self.store()


class Deferring(LateDisk):
    """Keeps the requests themselves."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            if request.op != "flush":
                self.requests.append(request.defer())
                self.some.release()

    def answer(self) -> None:
        request = self.requests.pop()
        self.note("store")
        if request.op == "write":
            request.copy_to(self.mem, request.offset)
        request.complete()


LATE = pytest.mark.parametrize("kind", [Keeping, KeepingInBatches, Deferring])
Late = Keeping | KeepingInBatches | Deferring


@contextmanager
def driving(device: LateDisk, socket: Path, *, cache: bool = False) -> Iterator[OpenDriver]:
    """A driver that knows of no write cache, or of one that is on."""
    never = 0 if cache else BlkFeature.FLUSH
    with (
        vu.Backend(device, socket=socket),
        FrontEnd.connect(str(socket)).start(never=never) as front,
    ):
        driver = OpenDriver(front)
        device.answers = lambda: driver.ring.used_index
        yield driver


def kept_write(driver: OpenDriver, device: LateDisk, *sizes: int) -> OpenRequest:
    """A write whose callback has returned, with all that follows it."""
    write = driver.write(0, b"w" * 1024, *sizes)
    assert device.some.acquire(timeout=LIMIT)
    read = driver.read(8192, 512)
    if isinstance(device, Deferring):
        assert device.some.acquire(timeout=LIMIT)
        device.requests.pop().complete()
    assert driver.wait().head == read.head
    device.events.clear()
    return write


@LATE
@pytest.mark.parametrize("sizes", [(1024,), (512, 512)], ids=str)
def test_a_write_that_is_stored_late_is_flushed_before_the_driver_hears_of_it(
    vhost_socket: Path, kind: type[Late], sizes: tuple[int, ...]
) -> None:
    device = kind()
    with driving(device, vhost_socket) as driver:
        write = kept_write(driver, device, *sizes)
        device.answer()
        assert driver.wait().head == write.head
        assert device.events == [("store", 1), ("flush", 1)]
        assert device.mem[:1024] == b"w" * 1024


@LATE
def test_with_the_cache_on_a_late_write_is_not_flushed(
    vhost_socket: Path, kind: type[Late]
) -> None:
    device = kind()
    with driving(device, vhost_socket, cache=True) as driver:
        write = kept_write(driver, device)
        device.answer()
        assert driver.wait().head == write.head
        assert device.events == [("store", 1)]


@LATE
@pytest.mark.parametrize(("error", "status"), [(OSError("full"), 1), (NotImplementedError(), 2)])
def test_a_late_write_fails_with_its_flush(
    vhost_socket: Path, kind: type[Late], error: Exception, status: int
) -> None:
    device = kind()
    with driving(device, vhost_socket) as driver:
        write = kept_write(driver, device)
        device.failure = error
        device.answer()
        assert driver.wait().head == write.head
        assert write.status == status


def test_a_late_read_is_not_flushed(vhost_socket: Path) -> None:
    device = Deferring()
    with driving(device, vhost_socket) as driver:
        read = driver.read(0, 512)
        assert device.some.acquire(timeout=LIMIT)
        device.answer()
        assert driver.wait().head == read.head
        assert device.events == [("store", 0)]


def test_a_late_write_that_fails_is_not_flushed(vhost_socket: Path) -> None:
    device = Deferring()
    with driving(device, vhost_socket) as driver:
        write = kept_write(driver, device)
        device.requests.pop().fail()
        assert driver.wait().head == write.head
        assert device.events == []


def test_the_flush_of_a_late_write_overlaps_no_callback(vhost_socket: Path) -> None:
    """The one who answers waits neither for the callback nor for the flush."""

    class Busy(Keeping):
        entered, leave = threading.Event(), threading.Event()

        def read(self, offset: int, buf: memoryview, /) -> None:
            if offset == 0:
                self.entered.set()
                assert self.leave.wait(LIMIT)
                self.note("read")

    device = Busy()
    with driving(device, vhost_socket) as driver:
        kept_write(driver, device)
        driver.read(0, 512)
        assert device.entered.wait(LIMIT)
        device.answer()
        device.leave.set()
        driver.wait()
        driver.wait()
        assert [what for what, _ in device.events] == ["store", "read", "flush"]


@LATE
def test_a_cache_that_is_turned_off_meanwhile_has_late_writes_flushed(
    vhost_socket: Path, kind: type[Late]
) -> None:
    device = kind()
    with driving(device, vhost_socket, cache=True) as driver:
        write = kept_write(driver, device)
        driver.front.change(Request.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, b"\0"))
        assert device.events == [("flush", 1)], "what was stored before"
        device.answer()
        assert driver.wait().head == write.head
        assert device.events[1:] == [("store", 1), ("flush", 1)]


def test_a_late_answer_after_the_stop_is_stale_and_flushes_nothing(vhost_socket: Path) -> None:
    device = Deferring()
    backend = vu.Backend(device, socket=vhost_socket).start()
    with FrontEnd.connect(str(vhost_socket)).start(never=BlkFeature.FLUSH) as front:
        OpenDriver(front).write(0, b"w" * 512)
        assert device.some.acquire(timeout=LIMIT)
        backend.stop(drain=0.05)
        device.events.clear()
        with pytest.raises(vu.StaleRequestError):
            device.requests[0].complete()
        assert device.events == []


@LATE
def test_a_write_that_is_stored_during_the_flush_after_its_callback_is_flushed_again(
    vhost_socket: Path, kind: type[Late]
) -> None:
    class Racing(kind):  # type: ignore[misc, valid-type]
        """Another thread stores what was kept, and answers, while the flush runs."""

        armed = False

        def flush(self) -> None:
            super().flush()
            if self.armed:
                self.armed = False
                other = threading.Thread(target=self.answer)
                other.start()
                other.join()

    device = Racing()
    with driving(device, vhost_socket) as driver:
        device.armed = True
        write = driver.write(0, b"w" * 1024)
        assert driver.wait().head == write.head
        assert write.status == 0
        assert device.events == [("flush", 0), ("store", 0), ("flush", 0)]


def test_no_flush_begins_after_the_stop_for_writes_that_waited_for_another(
    vhost_socket: Path,
) -> None:
    class Slow(Deferring):
        entered, leave = threading.Event(), threading.Event()
        armed = False

        def flush(self) -> None:
            super().flush()
            if self.armed:
                self.entered.set()
                assert self.leave.wait(LIMIT)

    device = Slow()
    backend = vu.Backend(device, socket=vhost_socket).start()
    with FrontEnd.connect(str(vhost_socket)).start(never=BlkFeature.FLUSH) as front:
        driver = OpenDriver(front)
        kept_write(driver, device)
        kept_write(driver, device)
        device.armed = True
        device.events.clear()
        device.requests[0].complete()
        assert device.entered.wait(LIMIT)
        device.requests[1].complete()
        backend.stop(drain=0.05)
        device.leave.set()
        assert eventually(lambda: "vhost-user-late" not in threads(), LIMIT)
        assert device.events == [("flush", 0)]


def threads() -> set[str]:
    """The names of this process's threads, as the kernel has them."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


@LATE
def test_after_a_panic_in_the_flush_late_writes_are_answered_all_the_same(
    vhost_socket: Path, kind: type[Late]
) -> None:
    """The write that it was for fails, and the next is flushed by another thread."""
    device = kind()
    with driving(device, vhost_socket) as driver:
        for failure in [*panics(), None]:
            write = kept_write(driver, device)
            device.failure = failure
            device.answer()
            assert driver.wait().head == write.head
            assert write.status == (Status.IOERR if failure else Status.OK)
            device.failure = None
