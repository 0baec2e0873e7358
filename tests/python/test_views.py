"""Who holds a view of a request's data holds the request.

The driver gets it back when it was answered and the last view is gone, so nobody here ever reads
or overwrites memory that the guest has taken back.
"""

import ctypes
import gc
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import vhost_user as vu
from peer.process import eventually

from .disks import SIZE, Keeper, RamDisk
from .driver import OpenDriver, OpenRequest, open_driver
from .repeats import repeats

Keep = Callable[[memoryview], object]
HERE, THERE = 4096, 8192
"""A read at the first place is kept, one at the second is not."""


def slice_of(buf: memoryview) -> object:
    return buf[10:20]


def array_of(buf: memoryview) -> object:
    return np.frombuffer(buf, np.uint8)


def pointer_to(buf: memoryview) -> object:
    return (ctypes.c_char * len(buf)).from_buffer(buf)


def cast_of(buf: memoryview) -> object:
    return buf.cast("I")


def itself(buf: memoryview) -> object:
    return buf


class Tensor:
    """Keeps a view without an export, as `torch.frombuffer` does: that asks for the buffer, lets go
    of it, and keeps the address and the object."""

    def __init__(self, buf: memoryview) -> None:
        export = (ctypes.c_char * len(buf)).from_buffer(buf)
        self.owner, self.address = buf, ctypes.addressof(export)

    def fill(self, byte: int) -> None:
        ctypes.memset(self.address, byte, 512)


KEEPS = pytest.mark.parametrize("keep", [slice_of, array_of, pointer_to, cast_of, itself])


class Kept(Keeper):
    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keeper = keep

    def keep(self, buf: memoryview) -> object:
        return self.keeper(buf)

    def read(self, offset: int, buf: memoryview, /) -> None:
        if offset == THERE:
            buf[:] = self.mem[offset : offset + len(buf)]
        else:
            super().read(offset, buf)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@KEEPS
@pytest.mark.parametrize("sizes", [(1024,), (512, 1024), (1, 510, 513)], ids=str)
def test_a_kept_view_keeps_its_request(
    vhost_socket: Path, keep: Keep, sizes: tuple[int, ...]
) -> None:
    device = Kept(keep)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        held = driver.read(HERE, *sizes)
        free = driver.read(THERE, 512)
        assert driver.wait().head == free.head, "the request whose view is kept was answered"
        assert free.data == device.mem[THERE : THERE + 512]
        device.kept.clear()
        gc.collect()
        used = driver.wait()
        assert (used.head, used.length) == (held.head, sum(sizes) + 1)
        assert held.status == 0
        assert held.data == device.mem[HERE : HERE + sum(sizes)]


def test_a_tensor_over_a_view_keeps_the_request_and_what_it_fills_reaches_the_driver(
    vhost_socket: Path,
) -> None:
    device = Kept(Tensor)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for sizes in ((512,), (256, 256)):
            held, free = driver.read(HERE, *sizes), driver.read(THERE, 512)
            assert driver.wait().head == free.head, "answered while the tensor shows its memory"
            tensor = device.kept.pop()
            assert isinstance(tensor, Tensor)
            tensor.fill(3)
            del tensor
            assert driver.wait().head == held.head
            assert held.data == b"\x03" * 512


def test_what_is_written_to_a_kept_view_reaches_the_driver(vhost_socket: Path) -> None:
    device = Kept(lambda buf: buf[:])
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for sizes in ((1024,), (512, 512)):
            held = driver.read(HERE, *sizes)
            assert device.entered.wait(5)
            device.entered.clear()
            view = device.kept.pop()
            assert isinstance(view, memoryview)
            view[:] = b"late" * 256
            view.release()
            assert driver.wait().head == held.head
            assert held.data == b"late" * 256


@pytest.mark.parametrize(
    "keep", [slice_of, array_of, cast_of, itself]
)  # ctypes takes no read-only buffer
def test_a_kept_view_of_a_write_keeps_its_request(vhost_socket: Path, keep: Keep) -> None:
    class Writes(Kept):
        def write(self, offset: int, buf: memoryview, /) -> None:
            self.kept.append(self.keep(buf))

    device = Writes(keep)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        held = driver.write(0, b"w" * 512)
        free = driver.read(THERE, 512)
        assert driver.wait().head == free.head
        assert bytes(device.kept[0])[:1] == b"w"  # type: ignore[call-overload]
        device.kept.clear()
        gc.collect()
        assert driver.wait().head == held.head


def test_the_error_of_a_callback_waits_for_the_view_too(vhost_socket: Path) -> None:
    class Failing(Kept):
        def read(self, offset: int, buf: memoryview, /) -> None:
            super().read(offset, buf)
            if offset == HERE:
                raise OSError("lost")

    device = Failing(slice_of)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        held, free = driver.read(HERE, 512), driver.read(THERE, 512)
        assert driver.wait().head == free.head
        device.kept.clear()
        assert driver.wait().head == held.head
        assert held.status == 1


def test_a_view_handed_to_another_thread_is_good_until_it_is_released(
    vhost_blk: vu.testing.BlkFactory, pool: ThreadPoolExecutor
) -> None:
    filling = threading.Event()

    class Handing(Keeper):
        def read(self, offset: int, buf: memoryview, /) -> None:
            pool.submit(self.fill, buf[:])

        def fill(self, view: memoryview) -> None:
            filling.wait(5)
            view[:] = b"t" * len(view)
            view.release()

    disk = vhost_blk(Handing())
    reading = pool.submit(disk.pread, 512, 0)
    filling.set()
    assert reading.result(5) == b"t" * 512


def use(view: object) -> None:
    """Reads and writes through whatever was kept."""
    with memoryview(view).cast("B") as flat:  # type: ignore[arg-type]
        bytes(flat)
        flat[:] = b"!" * len(flat)


@KEEPS
@pytest.mark.parametrize("sizes", [(1024,), (512, 512)], ids=str)
def test_at_stop_what_a_view_shows_is_cut_off_from_the_guest(
    vhost_socket: Path, keep: Keep, sizes: tuple[int, ...]
) -> None:
    device = Kept(keep)
    backend = vu.Backend(device, socket=vhost_socket).start()
    with open_driver(vhost_socket) as driver:
        held = hold_one(driver, *sizes)
        before = held.data
        backend.stop(drain=0.05)
        assert backend.state == "stopped"
        use(device.kept[0])
        assert held.data == before
        assert held.status == 0xA5, "an answer after the stop"
        device.kept.clear()
        gc.collect()
        assert held.data == before


def hold_one(driver: OpenDriver, *sizes: int) -> OpenRequest:
    """A read whose callback has returned and whose view is kept."""
    held, free = driver.read(HERE, *sizes), driver.read(THERE, 512)
    assert driver.wait().head == free.head
    return held


def test_the_front_end_may_leave_while_a_view_is_held(vhost_socket: Path) -> None:
    device = Kept(slice_of)
    with vu.Backend(device, socket=vhost_socket):
        with open_driver(vhost_socket) as driver:
            hold_one(driver, 512)
        with open_driver(vhost_socket) as driver:
            free = driver.read(THERE, 512)
            assert driver.wait().head == free.head
            use(device.kept[0])
            device.kept.clear()
            assert driver.ring.used_index == 1


def test_a_view_held_for_long_is_told_whatever_the_warning_filters_say(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Kept(slice_of)
    with (
        warnings.catch_warnings(),
        vu.Backend(device, socket=vhost_socket),
        open_driver(vhost_socket) as driver,
    ):
        warnings.simplefilter("ignore")
        held = hold_one(driver, 512)
        assert eventually(lambda: bool(caplog.records))
        device.kept.clear()
        assert driver.wait().head == held.head
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Kept.read: a view of the request's data is still held 1 s after" in record.getMessage()


def test_many_views_held_for_long_are_a_line_and_a_number(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Writes(Kept):
        def write(self, offset: int, buf: memoryview, /) -> None:
            self.kept.append(self.keep(buf))

    device = Writes(slice_of)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for _ in range(5):
            driver.read(HERE, 512)
        driver.write(HERE, bytes(512))
        # They are looked at in their order: when the last is told, all were seen.
        assert eventually(lambda: "Writes.write: a view" in caplog.text)
        device.kept.clear()
        driver.ring.wait(6)
    told = [record.getMessage().removeprefix(f"{vhost_socket}: ") for record in caplog.records]
    still_held = "a view of the request's data is still held"
    assert told[0].startswith(f"Writes.read: {still_held} 1 s after it was answered; the driver")
    assert told[1].startswith(f"Writes.write: {still_held} 1 s after it was answered; the driver")
    assert repeats(told[2:], f"Writes.read: {still_held}") == 4


def test_a_view_held_for_long_is_an_error_in_tests(vhost_blk: vu.testing.BlkFactory) -> None:
    device = Kept(slice_of)
    disk = vhost_blk(device, timeout=2.0)
    with pytest.raises(TimeoutError) as caught:
        disk.pread(512, HERE)
    assert isinstance(caught.value.__cause__, BufferError)
    assert "Kept.read" in str(caught.value.__cause__)
    device.kept.clear()


class Retrying(RamDisk):
    """Keeps the last failure in a variable of its own frame: frame and exception are a circle."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        failure = OSError("never tried")
        for _ in range(3):
            try:
                raise OSError("for a moment")
            except OSError as error:
                failure = error
        raise failure


class Recovering(RamDisk):
    """The same of a read that goes well."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        failures = []
        try:
            raise KeyError(offset)
        except KeyError as error:
            failures.append(error)
        buf[:] = bytes(len(buf))


class Recursive(RamDisk):
    """Has a local function that knows itself, and the view."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        def attempt(left: int) -> None:
            if left:
                attempt(left - 1)
            else:
                buf[:] = bytes(len(buf))

        attempt(3)


@pytest.mark.parametrize("kind", [Retrying, Recovering, Recursive])
def test_a_view_in_variables_that_refer_to_each_other_in_a_circle_goes_by_itself(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, kind: type[RamDisk]
) -> None:
    """A guest with one request at a time: nothing else has the garbage collected."""
    gc.disable()
    try:
        with vu.Backend(kind(), socket=vhost_socket), open_driver(vhost_socket) as driver:
            for _ in range(2):
                read = driver.read(0, 512)
                assert driver.wait().head == read.head
    finally:
        gc.enable()
    assert "still held" not in caplog.text


def test_the_object_behind_a_view_gives_no_new_one_after_the_answer(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    device = Kept(lambda buf: buf.obj)
    disk = vhost_blk(device)
    assert disk.pread(512, HERE) == device.mem[HERE : HERE + 512]
    (pane,) = device.kept
    with pytest.raises(BufferError, match="answered"):
        memoryview(pane)  # type: ignore[arg-type]
    assert disk.pread(512, 512) == device.mem[512:1024]


def test_the_pieces_of_a_request_give_no_view_after_the_answer(vhost_socket: Path) -> None:
    kept: list[object] = []

    class Pieces(Keeper):
        def on_batch(self, batch: object, /) -> None:
            for request in batch:  # type: ignore[attr-defined]
                kept.extend(piece.obj for piece in request.segments)
                request.fill(1)

    with vu.Backend(Pieces(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        read = driver.read(0, 512, 512)
        assert driver.wait().head == read.head
        assert read.data == b"\x01" * 1024
    assert len(kept) == 2
    for pane in kept:
        with pytest.raises(BufferError, match="answered"):
            memoryview(pane)  # type: ignore[arg-type]


def test_data_in_pieces_shows_nothing_of_an_earlier_request(vhost_socket: Path) -> None:
    """The private copy of such data is used again, but not what was in it."""

    class Lazy(Keeper):
        def read(self, offset: int, buf: memoryview, /) -> None:
            if offset == HERE:
                buf[:] = b"s" * len(buf)

    with vu.Backend(Lazy(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        first = driver.read(HERE, 512, 512)
        driver.wait()
        second = driver.read(THERE, 512, 512)
        driver.wait()
        assert (first.data, second.data) == (b"s" * 1024, bytes(1024))


def test_no_view_reaches_past_its_request(vhost_socket: Path) -> None:
    class Over(Keeper):
        def read(self, offset: int, buf: memoryview, /) -> None:
            with pytest.raises(IndexError):
                buf[len(buf)] = 0
            with pytest.raises(ValueError, match="different structures"):
                buf[:] = bytes(SIZE)
            self.entered.set()
            raise OSError

    device = Over()
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for sizes in ((512,), (256, 256)):
            device.entered.clear()
            read = driver.read(0, *sizes)
            driver.wait()
            assert device.entered.is_set()
            assert read.status == 1
            if len(sizes) == 1:
                assert read.untouched


def test_the_variables_of_a_callback_that_raised_hold_no_request(vhost_socket: Path) -> None:
    """The exception is kept, by the log and for the test; the frames it came through are not."""

    class OneByOne(Keeper):
        def read(self, offset: int, buf: memoryview, /) -> None:
            head = buf[:16]
            head[0] = 1
            raise LookupError

    class Chained(Keeper):
        def read(self, offset: int, buf: memoryview, /) -> None:
            try:
                self.look_up(buf)
            except KeyError as error:
                raise LookupError from error

        def look_up(self, buf: memoryview) -> None:
            try:
                raise ValueError
            except ValueError:
                raise KeyError(len(buf)) from None

    class InBatches(Keeper):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                head = request.data[:16]
                head[0] = 1
                raise LookupError

    class AsQueue(vu.Device):
        device_id = 2

        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                head = request.readable[:16]
                raise LookupError(len(head))

    for device in (OneByOne(), Chained(), InBatches(), AsQueue()):
        backend = vu.Backend(device, socket=vhost_socket, on_error="raise")
        with backend, open_driver(vhost_socket) as driver:
            read = driver.read(0, 512)
            assert driver.wait().head == read.head
            assert isinstance(backend.take_failure(), LookupError)


class Batches(Keeper):
    """Answers each request by `answer`, and keeps what that raises."""

    def __init__(self, answer: Callable[[vu.BlockRequest], None]) -> None:
        super().__init__()
        self.answer = answer

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            self.answer(request)


def run_read(socket: Path, answer: Callable[[vu.BlockRequest], None]) -> bytes:
    """What comes of a read in two pieces."""
    with (
        vu.Backend(Batches(answer), socket=socket, on_error="stop") as backend,
        open_driver(socket) as driver,
    ):
        read = driver.read(0, 512, 1024)
        driver.wait()
        assert read.status == 0, backend.take_failure()
        return read.data


def test_pieces_that_are_asked_for_after_the_whole_show_the_same(vhost_socket: Path) -> None:
    def answer(request: vu.BlockRequest) -> None:
        whole = request.data
        whole[:] = b"w" * 1536
        first, second = request.segments
        assert (bytes(first), bytes(second)) == (b"w" * 512, b"w" * 1024)
        first[:] = b"1" * 512
        assert bytes(whole[:512]) == b"1" * 512
        whole[-1:] = b"!"
        assert bytes(second[-1:]) == b"!"

    assert run_read(vhost_socket, answer) == b"1" * 512 + b"w" * 1023 + b"!"


def test_the_whole_of_what_was_handed_out_in_pieces_is_refused(vhost_socket: Path) -> None:
    def answer(request: vu.BlockRequest) -> None:
        first, second = request.segments
        first[:], second[:] = b"1" * 512, b"2" * 1024
        with pytest.raises(BufferError, match="segments has handed out"):
            request.data  # noqa: B018
        request.copy_from(b"f")

    assert run_read(vhost_socket, answer) == b"f" + b"1" * 511 + b"2" * 1024


def test_the_next_request_may_be_taken_as_a_whole_again(vhost_socket: Path) -> None:
    def answer(request: vu.BlockRequest) -> None:
        if request.offset == HERE:
            for piece in request.segments:
                piece[:] = b"p" * len(piece)
        else:
            request.data[:] = b"d" * 1024

    device = Batches(answer)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for place, expected in ((HERE, b"p"), (THERE, b"d")) * 2:
            read = driver.read(place, 512, 512)
            driver.wait()
            assert read.data == expected * 1024


def test_of_data_in_one_piece_whole_and_pieces_are_one(vhost_socket: Path) -> None:
    def answer(request: vu.BlockRequest) -> None:
        (piece,) = request.segments
        request.data[:2] = b"ab"
        piece[1:3] = b"cd"
        assert bytes(request.data[:3]) == b"acd"

    device = Batches(answer)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        driver.wait()
        assert (read.status, read.data[:3]) == (0, b"acd")


def test_a_write_s_data_is_seen_whole_and_in_pieces_in_any_order(vhost_socket: Path) -> None:
    seen: list[bytes] = []

    def answer(request: vu.BlockRequest) -> None:
        if request.offset == HERE:
            seen.append(bytes(request.data))
            seen.extend(bytes(piece) for piece in request.segments)
        else:
            seen.extend(bytes(piece) for piece in request.segments)
            seen.append(bytes(request.data))

    device = Batches(answer)
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for place in (HERE, THERE):
            write = driver.write(place, b"1" * 512 + b"2" * 512, 512, 512)
            driver.wait()
            assert write.status == 0
    one, two = b"1" * 512, b"2" * 512
    assert seen == [one + two, one, two, one, two, one + two]
