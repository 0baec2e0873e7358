"""Views of guest memory that outlive their callback.

A request goes back to the guest when it was answered and its last view is gone. So nobody can
write, through a forgotten view, to memory that the guest has taken back.
"""

import ctypes
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import vhost_user as vu
from peer.blk import CANARY, BlkDriver, Request, Status, Type
from peer.memory import GuestMemory, Region
from peer.process import eventually
from peer.ring import Segment

from .conftest import Bench, Drive, RamDisk

Hold = Callable[[memoryview], Any]

HOLDS: dict[str, Hold] = {
    "itself": lambda view: view,
    "slice": lambda view: view[:],
    "part": lambda view: view[100:200],
    "cast": lambda view: view.cast("I"),
    "read-only": lambda view: view.toreadonly(),
    "another memoryview": memoryview,
    "numpy": lambda view: numpy.frombuffer(view, dtype="u1"),
    "numpy slice": lambda view: numpy.frombuffer(view, dtype="u1")[5:9],
    "ctypes": lambda view: (ctypes.c_ubyte * len(view)).from_buffer(view),
}


class HoldingDisk(RamDisk):
    """Keeps something of each buffer of queue 0 beyond its callback."""

    thread_safe = True

    def __init__(self, hold: Hold, **options: Any) -> None:
        super().__init__(num_queues=2, **options)
        self.hold = hold
        self.held: list[Any] = []

    def read(self, offset: int, buf: memoryview, /) -> None:
        super().read(offset, buf)
        if offset:
            self.held.append(self.hold(buf))


def submit_read(disk: BlkDriver, sector: int = 8) -> Request:
    request = disk.prepare(Type.IN, sector, room=512)
    disk.submit(request)
    disk.ring.kick()
    return request


def round_trip(bench: Bench) -> None:
    """Requests on another queue, so that what was answered meanwhile would have been seen."""
    for _ in range(20):
        assert bench.fronts[-1].blk(1).read(0, 512).status == Status.OK


@pytest.mark.parametrize("hold", list(HOLDS.values()), ids=list(HOLDS))
def test_a_request_goes_back_when_its_last_view_is_gone(bench: Bench, hold: Hold) -> None:
    device = HoldingDisk(hold)
    disk = bench.drive(device, queues=2).blk(0)
    request = submit_read(disk)
    assert eventually(lambda: len(device.held) == 1)
    round_trip(bench)
    assert disk.ring.used_index == 0
    device.held.clear()
    gc.collect()
    disk.ring.wait(1)
    assert disk.result(request).status == Status.OK


def test_what_is_written_through_a_held_view_reaches_the_guest(bench: Bench) -> None:
    device = HoldingDisk(lambda view: view[:])
    disk = bench.drive(device, queues=2).blk(0)
    request = submit_read(disk)
    assert eventually(lambda: len(device.held) == 1)
    device.held[0][:] = b"\x42" * 512
    device.held.pop().release()
    disk.ring.wait(1)
    assert disk.result(request).data == b"\x42" * 512


def test_the_last_of_several_views_counts(bench: Bench) -> None:
    device = HoldingDisk(lambda view: [view[:10], memoryview(view)[20:], view[:]])
    disk = bench.drive(device, queues=2).blk(0)
    submit_read(disk)
    assert eventually(lambda: len(device.held) == 1)
    views = device.held.pop()
    while views:
        round_trip(bench)
        assert disk.ring.used_index == 0
        views.pop().release()
    disk.ring.wait(1)


def test_another_thread_may_fill_the_buffer_after_the_callback(bench: Bench) -> None:
    """Ordinary zero-copy: hand a view over, return, and let it go when the data is there."""
    go = threading.Event()
    workers: list[threading.Thread] = []

    def hand_over(view: memoryview) -> None:
        kept = view[:]

        def fill() -> None:
            go.wait()
            kept[:] = b"\x51" * len(kept)
            kept.release()

        workers.append(threading.Thread(target=fill))
        workers[-1].start()

    disk = bench.drive(HoldingDisk(hand_over), queues=2).blk(0)
    request = submit_read(disk)
    assert eventually(lambda: len(workers) == 1)
    round_trip(bench)
    assert disk.ring.used_index == 0
    go.set()
    disk.ring.wait(1)
    workers[0].join()
    assert disk.result(request).data == b"\x51" * 512


def test_a_buffer_in_several_pieces_is_held_too(bench: Bench) -> None:
    """What Python sees is then a copy; the guest gets it, with what was written late."""
    device = HoldingDisk(lambda view: view[:])
    disk = bench.drive(device, queues=2).blk(0)
    request = disk.prepare(Type.IN, 8, room=512)
    header, data, status = request.chain()
    half = Segment(data.address, 256, True), Segment(data.address + 256, 256, True)
    disk.ring.add([header, *half, status])
    disk.ring.kick()
    assert eventually(lambda: len(device.held) == 1)
    round_trip(bench)
    assert disk.ring.used_index == 0
    device.held[0][250:260] = b"\x61" * 10
    device.held.pop().release()
    disk.ring.wait(1)
    assert disk.result(request).data == bytes(250) + b"\x61" * 10 + bytes(252)


def test_a_buffer_that_the_driver_filled_cannot_be_written(drive: Drive) -> None:
    errors: list[type[BaseException]] = []

    class Scribbler(RamDisk):
        def write(self, offset: int, buf: memoryview, /) -> None:
            assert buf.readonly
            for attempt in (
                lambda: buf.__setitem__(0, 1),
                lambda: buf.__setitem__(slice(None), bytes(len(buf))),
                lambda: (ctypes.c_char * len(buf)).from_buffer(buf),
            ):
                try:
                    attempt()
                except TypeError as error:
                    errors.append(type(error))
            super().write(offset, buf)

    disk = drive(Scribbler()).blk()
    request = disk.prepare(Type.OUT, 0, b"\x71" * 512)
    assert disk.run(request).status == Status.OK
    assert errors == [TypeError] * 3
    assert disk.memory.read(request.data, 512) == b"\x71" * 512


@pytest.mark.parametrize("end", ["disconnect", "stop"])
@pytest.mark.parametrize("hold", [HOLDS["slice"], HOLDS["numpy"]], ids=["slice", "numpy"])
def test_a_view_held_past_the_end_touches_nothing_of_the_guest(
    bench: Bench, hold: Hold, end: str
) -> None:
    """It stays readable and writable, over private memory; the process lives, and the back-end
    serves the next front-end."""
    device = HoldingDisk(hold)
    memory = GuestMemory(Region(0, 1 << 20))
    bench.serve(device)
    front = bench.connect(memory).start(queues=2)
    disk = front.blk(0)
    request = submit_read(disk)
    assert eventually(lambda: len(device.held) == 1)
    if end == "stop":
        bench.backend.stop(drain=0.2)
    else:
        front.channel.close()
        assert eventually(lambda: bench.backend.state == "listening", 15)
    (view,) = device.held
    before = memory.read(request.data, 512)
    view[:] = numpy.full(512, 0x7E, dtype="u1")
    assert bytes(view[:4]) == b"\x7e" * 4
    assert memory.read(request.data, 512) == before
    assert disk.ring.used_index == 0
    assert memory.read(request.status, 1) == bytes([CANARY])
    del view
    device.held.clear()
    if end == "disconnect":
        again = bench.connect().start(2)
        assert again.blk(0).read(0, 512).status == Status.OK


def test_a_view_that_is_held_for_long_is_reported_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    device = HoldingDisk(lambda view: view[:])
    disk = bench.drive(device, queues=2).blk(0)
    submit_read(disk)
    assert eventually(lambda: "still held" in caplog.text, 5)
    round_trip(bench)
    (told,) = [text for text in caplog.messages if "still held" in text]
    assert "HoldingDisk.read" in told
    device.held.clear()
    disk.ring.wait(1)


def test_views_of_a_batch_hold_only_their_own_request(bench: Bench) -> None:
    held: list[memoryview] = []

    class Batch(RamDisk):
        def on_batch(self, batch: Any, /) -> None:
            for request in batch:
                if request.offset:
                    held.append(request.data[:])
                request.complete()

    disk = bench.drive(Batch()).blk()
    kept = disk.prepare(Type.IN, 8, room=512)
    other = disk.prepare(Type.IN, 0, room=512)
    kept_head, other_head = disk.submit(kept), disk.submit(other)
    disk.ring.kick()
    assert [used.head for used in disk.ring.wait(1)] == [other_head]
    assert eventually(lambda: len(held) == 1)
    held.clear()
    assert [used.head for used in disk.ring.wait(1)] == [kept_head]


def test_segments_are_views_of_the_guest(bench: Bench) -> None:
    seen: list[list[int]] = []

    class Segments(RamDisk):
        def on_batch(self, batch: Any, /) -> None:
            for request in batch:
                seen.append([len(segment) for segment in request.segments])
                for value, segment in enumerate(request.segments):
                    segment[:] = bytes([value + 1]) * len(segment)
                request.complete()

    disk = bench.drive(Segments()).blk()
    request = disk.prepare(Type.IN, 0, room=512)
    header, data, status = request.chain()
    pieces = Segment(data.address, 200, True), Segment(data.address + 200, 312, True)
    disk.ring.add([header, *pieces, status])
    disk.ring.kick()
    disk.ring.wait(1)
    assert seen == [[200, 312]]
    assert disk.result(request).data == b"\1" * 200 + b"\2" * 312


def test_requests_of_other_types_of_device_hold_their_views_too(bench: Bench) -> None:
    kept: list[memoryview] = []

    class Echo(vu.Device):
        device_id = 4

        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                count = min(len(request.readable), len(request.writable))
                request.writable[:count] = request.readable[:count]
                if bytes(request.readable[:1]) == b"k":
                    kept.append(request.writable[:])
                request.complete(count)

    front = bench.drive(Echo())
    ring, memory = front.rings[0], front.memory
    for text in (b"hello", b"keep!"):
        source, target = memory.allocate(8), memory.allocate(8)
        memory.write(source, text)
        ring.add([Segment(source, len(text)), Segment(target, 8, True)])
        ring.kick()
        if text.startswith(b"k"):
            assert eventually(lambda: len(kept) == 1)
            assert ring.used_index == 1
            kept.clear()
        assert ring.wait(1)[0].length == len(text)
        assert memory.read(target, len(text)) == text
