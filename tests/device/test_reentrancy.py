"""Python code that runs in the middle of a method may use the same object.

A method runs Python code where it takes an argument (`__index__`, `__float__`, `__buffer__`), and
wherever it makes an object, since that may start the garbage collector, whose callbacks and
finalizers are Python code. None of these may find the object locked.
"""

import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import vhost_user as vu
from peer.blk import Status, Type
from peer.front_end import FrontEnd

from .conftest import SIZE, Bench, RamDisk

DEADLINE = 10.0
"""Seconds for a callback that takes microseconds."""

REFUSALS = (
    *(TypeError, ValueError, LookupError, StopIteration),
    *(OSError, BufferError, vu.VhostUserError),
)
"""How a method may answer a call that makes no sense for this request."""

Look = Callable[[], object]
Number = Callable[[int], Any]


class Index:
    """A number that looks at something before it says what it is."""

    def __init__(self, value: int, look: Look) -> None:
        self.value = value
        self.look = look

    def __index__(self) -> int:
        self.look()
        return self.value

    def __float__(self) -> float:
        return float(self.__index__())


class Collector:
    """Looks at something whenever the garbage collector runs on its thread."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self.thread = threading.get_ident()
        self.is_looking = False

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() == self.thread and not self.is_looking:
            self.is_looking = True
            self.look()
            self.is_looking = False

    @contextmanager
    def often(self) -> Iterator[None]:
        """Runs the collector as often as it can be run."""
        before = gc.get_threshold()
        gc.callbacks.append(self)
        gc.set_threshold(1, 1, 1)
        try:
            yield
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(self)


class Looks:
    """Calls whose results do not matter, and how often they were made."""

    def __init__(self, *calls: Look) -> None:
        self.calls = calls
        self.made = 0

    def __call__(self) -> None:
        for call in self.calls:
            with suppress(*REFUSALS):
                call()
        self.made += 1


def exercise(call: Callable[[Number], object], looks: Looks) -> None:
    """Makes a call with numbers that look, and then with a collector that does."""
    with suppress(*REFUSALS):
        call(lambda value: Index(value, looks))
    with Collector(looks).often(), suppress(*REFUSALS):
        call(lambda value: value)


@pytest.fixture
def file() -> Iterator[int]:
    """A file as large as the disk."""
    with tempfile.TemporaryFile() as opened:
        os.ftruncate(opened.fileno(), SIZE)
        yield opened.fileno()


class Block(vu.BlockDevice):
    """Has one call made in its callback."""

    def __init__(self, use: Callable[[vu.BlockBatch], object]) -> None:
        super().__init__(size=SIZE)
        self.use = use
        self.done = threading.Event()

    def on_batch(self, batch: vu.BlockBatch, /) -> None:
        try:
            self.use(batch)
        finally:
            self.done.set()


def offer(front: FrontEnd) -> None:
    """Two reads and two writes at once, each in pieces: Python sees copies of them."""
    ring, heads = front.rings[0], []
    for kind in (Type.IN, Type.OUT, Type.IN, Type.OUT):
        disk = front.blk()
        request = (
            disk.prepare(kind, 0, room=1024)
            if kind == Type.IN
            else disk.prepare(kind, 0, b"\x11" * 1024)
        )
        header, data, status = request.chain()
        half = data._replace(length=512)
        heads.append(ring.lay([header, half, half, status]))
    ring.offer(*heads)
    ring.kick()


def run(bench: Bench, use: Callable[[vu.BlockBatch], object]) -> None:
    device = Block(use)
    front = bench.drive(device)
    offer(front)
    assert device.done.wait(DEADLINE), "the callback does not return"
    front.rings[0].wait(4)


BATCH: dict[str, Callable[[vu.BlockBatch, Number, int], object]] = {
    "len": lambda batch, n, fd: len(batch),
    "item": lambda batch, n, fd: batch[n(0)],
    "item from the end": lambda batch, n, fd: batch[n(-1)],
    "no item": lambda batch, n, fd: batch[n(99)],
    "slice": lambda batch, n, fd: batch[n(0) : n(3) : n(2)],
    "list": lambda batch, n, fd: list(batch),
    "reversed": lambda batch, n, fd: list(reversed(batch)),
    "in": lambda batch, n, fd: batch[0] in batch,
    "index": lambda batch, n, fd: batch.index(batch[n(1)]),
    "count": lambda batch, n, fd: batch.count(n(1)),
    "copy_from": lambda batch, n, fd: batch.copy_from(bytes(SIZE)),
    "copy_to": lambda batch, n, fd: batch.copy_to(bytearray(SIZE)),
    "preadv": lambda batch, n, fd: batch.preadv(n(fd), n(0)),
    "pwritev": lambda batch, n, fd: batch.pwritev(n(fd), n(0)),
    "repr": lambda batch, n, fd: repr(batch),
}


@pytest.mark.parametrize("name", list(BATCH))
def test_a_batch_may_be_used_in_the_middle_of_its_methods(
    bench: Bench, file: int, name: str
) -> None:
    def use(batch: vu.BlockBatch) -> None:
        looks = Looks(
            lambda: len(batch),
            lambda: batch[1].length,
            lambda: batch[:2],
            lambda: batch.count(None),
            lambda: batch.copy_to(bytearray(SIZE)),
        )
        exercise(lambda n: BATCH[name](batch, n, file), looks)

    run(bench, use)


REQUEST: dict[str, Callable[[vu.BlockRequest, Number, int], object]] = {
    "op": lambda request, n, fd: request.op,
    "ranges": lambda request, n, fd: request.ranges,
    "unmap": lambda request, n, fd: request.unmap,
    "data": lambda request, n, fd: request.data,
    "segments": lambda request, n, fd: request.segments,
    "copy_from": lambda request, n, fd: request.copy_from(bytes(1024)),
    "copy_from a place": lambda request, n, fd: request.copy_from(bytes(2048), n(1024)),
    "copy_from too much": lambda request, n, fd: request.copy_from(bytes(4096)),
    "copy_to": lambda request, n, fd: request.copy_to(bytearray(1024)),
    "copy_to a place": lambda request, n, fd: request.copy_to(bytearray(2048), n(1024)),
    "fill": lambda request, n, fd: request.fill(n(7)),
    "preadv": lambda request, n, fd: request.preadv(n(fd), n(0)),
    "pwritev": lambda request, n, fd: request.pwritev(n(fd), n(0)),
    "submit": lambda request, n, fd: request.submit(n(fd), n(0)),
    "complete": lambda request, n, fd: request.complete(),
    "complete twice": lambda request, n, fd: [call() for call in [request.complete] * 2],
    "fail": lambda request, n, fd: request.fail(n(5)),
    "defer": lambda request, n, fd: request.defer().complete(),
    "repr": lambda request, n, fd: repr(request),
}


@pytest.mark.parametrize("place", [0, 1], ids=["read", "write"])
@pytest.mark.parametrize("name", list(REQUEST))
def test_a_block_request_may_be_used_in_the_middle_of_its_methods(
    bench: Bench, file: int, name: str, place: int
) -> None:
    def use_one(batch: vu.BlockBatch, request: vu.BlockRequest) -> None:
        looks = Looks(
            lambda: request.ranges,
            lambda: request.data,
            lambda: repr(request),
            lambda: batch.copy_to(bytearray(SIZE)),
        )
        exercise(lambda n: REQUEST[name](request, n, file), looks)

    def use(batch: vu.BlockBatch) -> None:
        use_one(batch, batch[place])
        use_one(batch, batch[place + 2])

    run(bench, use)


class Generic(vu.Device):
    """Has one call made with each request."""

    device_id = 4

    def __init__(self, use: Callable[[vu.Queue], object]) -> None:
        super().__init__()
        self.use = use
        self.done = threading.Event()

    def on_queue(self, queue: vu.Queue, /) -> None:
        try:
            self.use(queue)
        finally:
            self.done.set()


QUEUE: dict[str, Callable[[vu.Queue, Number], object]] = {
    "next": lambda queue, n: next(queue),
    "batch": lambda queue, n: queue.batch(n(2)),
    "list": lambda queue, n: list(queue),
    "take": lambda queue, n: (queue.take() or next(queue)).complete(0),
    "send": lambda queue, n: queue.send(bytes(100), bytearray(8), max_buffers=n(2), count_at=n(4)),
    "send too much": lambda queue, n: queue.send(bytes(1 << 20), max_buffers=n(1)),
    "index": lambda queue, n: (queue.index, queue.size),
    "repr": lambda queue, n: repr(queue),
    "readable": lambda queue, n: next(queue).readable,
    "writable": lambda queue, n: next(queue).writable,
    "complete": lambda queue, n: next(queue).complete(n(8)),
    "complete with too much": lambda queue, n: next(queue).complete(n(1 << 30)),
    "defer": lambda queue, n: next(queue).defer().complete(),
    "request": lambda queue, n: repr(next(queue)),
}


@pytest.mark.parametrize("name", list(QUEUE))
def test_a_queue_and_its_requests_may_be_used_in_the_middle_of_their_methods(
    bench: Bench, name: str
) -> None:
    def use(queue: vu.Queue) -> None:
        request = next(queue)
        looks = Looks(
            lambda: queue.batch(0),
            lambda: repr(queue),
            lambda: (request.readable, request.writable),
            lambda: repr(request),
        )
        exercise(lambda n: QUEUE[name](queue, n), looks)
        for rest in queue:
            rest.complete(0)

    device = Generic(use)
    front = bench.drive(device)
    offer(front)
    assert device.done.wait(DEADLINE), "the callback does not return"
    front.rings[0].wait(4)


DRIVER: dict[str, Callable[[vu.VirtioBlkDriver, Number], object]] = {
    "config": lambda driver, n: driver.config(n(0), n(8)),
    "pread": lambda driver, n: driver.pread(n(512), n(0)),
    "pwrite": lambda driver, n: driver.pwrite(bytes(512), n(0)),
    "flush": lambda driver, n: driver.flush(),
    "discard": lambda driver, n: driver.discard(n(0), n(512)),
    "write_zeroes": lambda driver, n: driver.write_zeroes(n(0), n(512)),
    "set_writeback": lambda driver, n: driver.set_writeback(False),
    "serial": lambda driver, n: driver.serial(),
    "wait_config_change": lambda driver, n: driver.wait_config_change(n(0)),
    "prepare_load": lambda driver, n: driver.prepare_load(n(3)),
    "run_load": lambda driver, n: driver.run_load(block_bytes=n(512), depth=n(2), ops=n(4)),
    "features": lambda driver, n: (driver.features, driver.offered_features, driver.num_queues),
    "reconnect": lambda driver, n: driver.reconnect(),
    "repr": lambda driver, n: repr(driver),
}


@pytest.mark.parametrize("name", list(DRIVER))
def test_a_driver_may_be_used_in_the_middle_of_its_methods(bench: Bench, name: str) -> None:
    backend = bench.serve(RamDisk(serial="none"))
    done = threading.Event()

    def use() -> None:
        with vu.VirtioBlkDriver(backend._socket) as driver:
            looks = Looks(lambda: driver.size, lambda: driver.pread(512, 0), lambda: driver.peer)
            exercise(lambda n: DRIVER[name](driver, n), looks)
        done.set()

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert done.wait(DEADLINE), "the call does not return"
    thread.join()


def test_what_looks_is_run() -> None:
    """Else nothing above would be tested."""
    looks = Looks(lambda: None)
    assert len(range(Index(3, looks))) == 3
    assert looks.made == 1
    with Collector(looks).often():
        kept = [{number} for number in range(100)]
    assert len(kept) == 100
    assert looks.made > 1


class Exporter:
    """A buffer that looks at something before it is there."""

    def __init__(self, data: bytearray, look: Look) -> None:
        self.data = data
        self.look = look

    def __buffer__(self, flags: int, /) -> memoryview:
        self.look()
        return memoryview(self.data)

    def __release_buffer__(self, view: memoryview, /) -> None:
        self.look()


BUFFERS: dict[str, Callable[[vu.BlockBatch, Any], object]] = {
    "batch.copy_from": lambda batch, buffer: batch.copy_from(buffer),
    "batch.copy_to": lambda batch, buffer: batch.copy_to(buffer),
    "request.copy_from": lambda batch, buffer: batch[0].copy_from(buffer, 0),
    "request.copy_to": lambda batch, buffer: batch[1].copy_to(buffer, 0),
}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes cannot be buffers before 3.12")
@pytest.mark.parametrize("name", list(BUFFERS))
def test_a_buffer_may_use_what_it_is_handed_to(bench: Bench, name: str) -> None:
    def use(batch: vu.BlockBatch) -> None:
        looks = Looks(lambda: len(batch), lambda: batch[0].data, lambda: batch[1].ranges)
        BUFFERS[name](batch, Exporter(bytearray(SIZE), looks))
        assert looks.made == 2

    run(bench, use)


def test_an_exception_that_goes_may_ask_for_the_next_one(bench: Bench) -> None:
    """What a back-end keeps for a front-end to raise is replaced by the next, and may have a
    finalizer.
    """
    take: list[Callable[[], object]] = []
    taken: list[object] = []

    class Finalized(Exception):
        def __del__(self) -> None:
            taken.extend(call() for call in take)

    class Raising(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            raise Finalized

    backend = bench.serve(Raising(), on_error="raise")
    take.append(backend.take_failure)
    disk = bench.connect().start().blk()
    for _ in range(3):
        assert disk.read(0, 512).status == Status.IOERR
    backend.take_failure()
    gc.collect()
    assert taken
    take.clear()
