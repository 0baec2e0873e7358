"""What becomes of buffers that a device holds when its queue stops, and of slow requests.

The limit of the drain is the proof: it is longer than the tests wait for any answer.
"""

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.process import eventually
from peer.ring import Segment

from .receivers import SECONDS, Buffers, Port, receiving

LONG = 60
"""A drain that no answer waits for: the channel gives up after 5 s."""


class Holder(Port):
    """Takes every buffer that there is and keeps it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.held: list[vu.Request] = []
        self.enough = threading.Semaphore(0)

    def on_buffers(self, queue: vu.Queue, /) -> None:
        while (request := queue.take()) is not None:
            self.held.append(request)
            self.enough.release()

    def holds(self, count: int) -> None:
        """Waits until that many more are held."""
        for _ in range(count):
            assert self.enough.acquire(timeout=SECONDS)


class Deferrer(Holder):
    """The same by deferring what `on_queue` gets."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.receive_queues = []

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            self.held.append(request.defer())
            self.enough.release()


class Told(Port):
    """Notes the stops of its queues."""

    def on_queue_stop(self, queue: vu.Queue, /) -> None:
        self.told.put(f"stop {queue.index}")

    def on_stop(self) -> None:
        self.told.put("all stopped")


class StopHolder(Told, Holder):
    """Keeps every buffer, and notes the stops."""


KINDS = [Holder, Deferrer]


@pytest.mark.parametrize("make", KINDS)
def test_200_held_buffers_go_back_at_once_and_all_come_again(
    vhost_socket: Path, make: Callable[[], Holder]
) -> None:
    device = make()
    with receiving(device, vhost_socket, size=256, drain=LONG) as front:
        buffers = Buffers(front)
        heads = buffers.give(200)
        device.holds(200)
        assert front.stop_ring(0) == 0
        assert buffers.ring.used_index == 0
        with pytest.raises(vu.StaleRequestError, match="ended when its queue stopped"):
            device.held[7].complete()
        with pytest.raises(vu.StaleRequestError):
            device.held[7].writable  # noqa: B018  # asked for only to see it refused
        device.held.clear()
        front.start_ring(0, 256, base=0)
        device.holds(200)
        for number, request in enumerate(device.held):
            request.writable[:1] = bytes([number])
            request.complete(1)
        used = buffers.come(200)
        assert [u.head for u in used] == heads
        assert [buffers.data(u) for u in used] == [bytes([number]) for number in range(200)]
        assert front.stop_ring(0) == 200


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("completed", "base", "empty"),
    [
        ([0], 1, []),
        ([4], 5, [0, 1, 2, 3]),
        ([2], 3, [0, 1]),
        ([0, 1, 2, 3, 4], 5, []),
        ([1, 3], 4, [0, 2]),
    ],
)
def test_the_base_steps_back_over_the_tail_and_what_is_before_is_completed_empty(
    vhost_socket: Path,
    make: Callable[[], Holder],
    completed: list[int],
    base: int,
    empty: list[int],
) -> None:
    device = make()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        heads = buffers.give(5)
        device.holds(5)
        for number in completed:
            device.held[number].complete(7)
        assert [u.head for u in buffers.come(len(completed))] == [heads[n] for n in completed]
        assert front.stop_ring(0) == base == buffers.ring.used_index
        back = [(u.head, u.length) for u in buffers.ring.take(len(empty))]
        assert sorted(back) == sorted((heads[number], 0) for number in empty)
        device.held.clear()
        front.start_ring(0, base=base)
        device.holds(5 - base)
        for request in device.held:
            request.complete(3)
        assert [u.head for u in buffers.come(5 - base)] == heads[base:]


@pytest.mark.parametrize("make", KINDS)
def test_a_buffer_with_a_readable_part_is_waited_for(
    vhost_socket: Path, make: Callable[[], Holder]
) -> None:
    class Stopping(Told, make):  # type: ignore[misc, valid-type]
        """Notes the stops too."""

    device = Stopping()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        heads = buffers.give(1) + buffers.give(1, readable=4) + buffers.give(1)
        device.holds(3)
        front.channel.command(Request.GET_VRING_BASE, wire.state(0, 0))
        device.hears("stop 0")
        # The last goes back, the first is completed empty, and nobody has heard of the second.
        assert eventually(lambda: buffers.ring.used_index == 1)
        device.held[1].complete(2)
        answer = front.channel.receive()
        assert wire.STATE.unpack(answer.payload) == (0, 2)
        assert [(u.head, u.length) for u in buffers.ring.take(2)] == [(heads[0], 0), (heads[1], 2)]


def test_a_buffer_whose_view_is_held_is_waited_for_until_the_view_is_gone(
    vhost_socket: Path,
) -> None:
    device = StopHolder()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        buffers.give(2)
        device.holds(2)
        view = device.held[1].writable
        front.channel.command(Request.GET_VRING_BASE, wire.state(0, 0))
        device.hears("stop 0")
        assert eventually(lambda: buffers.ring.used_index == 1), "the first is completed empty"
        view[:4] = b"mine"
        # The buffer is still the device's: it can be completed.
        view.release()
        device.held[1].complete(4)
        assert wire.STATE.unpack(front.channel.receive().payload) == (0, 2)
        assert buffers.ring.take(2)[1].length == 4


def test_a_buffer_whose_view_is_held_past_the_limit_fails(vhost_socket: Path) -> None:
    device = Holder()
    with receiving(device, vhost_socket, drain=0.2) as front:
        buffers = Buffers(front)
        (head,) = buffers.give(1)
        device.holds(1)
        view = device.held[0].writable
        assert front.stop_ring(0) == 1
        assert [(u.head, u.length) for u in buffers.ring.take(1)] == [(head, 0)]
        del view
        with pytest.raises(vu.StaleRequestError):
            device.held[0].complete()


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_late_view_reaches_nobody_though_the_table_of_memory_has_changed(
    vhost_socket: Path, pieces: int
) -> None:
    """Firmware and guest change the memory map while requests are in flight."""
    device = Port()
    with receiving(device, vhost_socket, drain=0.2) as front:
        buffers = Buffers(front)
        buffers.give()
        device.hears("buffers 0")
        request = device.rx.take()
        assert request is not None
        view = request.writable
        (memory,) = front.memory.regions
        size = memory.size // pieces
        table = [
            wire.region(memory.guest + at, size, memory.user + at, at)
            for at in range(0, memory.size, size)
        ]
        front.change(Request.SET_MEM_TABLE, wire.memory_table(table), [memory.fd] * pieces)
        front.stop_ring(0)
        (used,) = buffers.come()
        view[:] = b"X" * len(view)
        assert front.memory.read(buffers.places[used.head], len(view)) == bytes(len(view))


@pytest.mark.parametrize("again", [False, True])
def test_a_view_that_was_looked_at_and_let_go_does_not_hold_a_buffer(
    vhost_socket: Path, again: bool
) -> None:
    device = Holder()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        buffers.give(3)
        device.holds(3)
        for request in device.held:
            assert len(request.writable) == 2048
        view = device.held[1].writable
        exporter = view.obj
        part = view[10:20]
        view.release()
        part.release()
        if again:
            # What the view was of shows it again, and lets it go again.
            with memoryview(exporter) as shown:
                assert len(shown) == 2048
        assert front.stop_ring(0) == 0 == buffers.ring.used_index
        with pytest.raises(BufferError):
            memoryview(exporter)


def test_a_view_that_is_made_again_of_what_a_view_shows_holds_the_buffer(
    vhost_socket: Path,
) -> None:
    device = Holder()
    with receiving(device, vhost_socket, drain=0.2) as front:
        buffers = Buffers(front)
        buffers.give(1)
        device.holds(1)
        exporter = device.held[0].writable.obj
        view = memoryview(exporter)
        assert front.stop_ring(0) == 1, "it was waited for, and failed"
        del view


def test_a_view_that_goes_while_the_queue_stops_lets_the_buffer_go_back(
    vhost_socket: Path,
) -> None:
    views: list[memoryview] = []
    device = StopHolder()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        buffers.give(3)
        device.holds(3)
        views.append(device.held[2].writable)
        front.channel.command(Request.GET_VRING_BASE, wire.state(0, 0))
        device.hears("stop 0")
        assert eventually(lambda: buffers.ring.used_index == 2)
        views.clear()
        assert wire.STATE.unpack(front.channel.receive().payload) == (0, 2)


def test_each_stop_is_told_once_before_the_drain(vhost_socket: Path) -> None:
    device = Told()
    with receiving(device, vhost_socket, drain=LONG) as front:
        for _ in range(3):
            front.stop_ring(0)
            device.hears("stop 0")
            front.start_ring(0, base=0)
        front.stop_ring(1)
        front.stop_ring(0)
        device.hears("stop 1", "stop 0", "all stopped")
        device.hears_nothing_more()


@pytest.mark.parametrize("way", ["RESET_DEVICE", "SET_STATUS", "hang up", "stop()"])
def test_other_ways_to_stop_are_told_as_well_and_give_buffers_back(
    vhost_socket: Path, way: str
) -> None:
    device = StopHolder()
    backend = vu.Backend(device, socket=vhost_socket, drain=LONG).start()
    try:
        front = FrontEnd.connect(str(vhost_socket)).start(2)
        buffers = Buffers(front)
        buffers.give(5)
        device.holds(5)
        if way == "RESET_DEVICE":
            front.change(Request.RESET_DEVICE)
        elif way == "SET_STATUS":
            front.change(Request.SET_STATUS, wire.u64(0))
        elif way == "hang up":
            front.channel.close()
        else:
            backend.stop(drain=LONG)
        device.hears("stop 0", "stop 1", "all stopped")
        assert buffers.ring.used_index == 0
        with pytest.raises(vu.StaleRequestError):
            device.held[0].complete()
        front.close()
    finally:
        backend.stop()
    device.hears_nothing_more()


def test_what_is_completed_when_the_stop_is_told_goes_back_before_the_answer(
    vhost_socket: Path,
) -> None:
    class Last(Holder):
        def on_queue_stop(self, queue: vu.Queue, /) -> None:
            assert (queue.take(), queue.send(b"late")) == (None, 0)
            for request in self.held:
                request.complete(5)

    device = Last()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        buffers.give(4, readable=4)
        device.holds(4)
        assert front.stop_ring(0) == 4
        assert [u.length for u in buffers.ring.take(4)] == [5] * 4


def test_an_error_when_the_stop_is_told_is_logged_and_the_queue_stops(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Port):
        def on_queue_stop(self, queue: vu.Queue, /) -> None:
            raise RuntimeError(queue.index)

    with receiving(Bad(), vhost_socket, drain=LONG) as front:
        assert front.stop_ring(0) == 0
    told = [
        r.getMessage()
        for r in caplog.records
        if "on_queue_stop raised RuntimeError" in r.getMessage()
    ]
    assert len(told) >= 1


def test_a_buffer_that_is_dropped_unanswered_goes_back_empty(vhost_socket: Path) -> None:
    device = Holder()
    with receiving(device, vhost_socket, drain=LONG) as front:
        buffers = Buffers(front)
        (head,) = buffers.give(1)
        device.holds(1)
        device.held.clear()
        assert [(u.head, u.length) for u in buffers.come()] == [(head, 0)]
        assert front.stop_ring(0) == 1


class Slow(Port):
    """Its requests wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.late: list[BaseException | None] = []

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            self.entered.set()
            self.gate.wait(SECONDS)
            try:
                request.complete(1)
                self.late.append(None)
            except vu.StaleRequestError as error:
                self.late.append(error)


class Patient(Slow):
    """The same for a device that is told of a stop while a callback runs."""

    thread_safe = True

    def on_queue_stop(self, queue: vu.Queue, /) -> None:
        self.told.put(f"stop {queue.index}")


def test_a_callback_that_outlasts_the_drain_gives_nothing_back_twice(vhost_socket: Path) -> None:
    device = Patient()
    with receiving(device, vhost_socket, drain=0.2) as front:
        requests = Buffers(front, 1)
        (head,) = requests.give(1)
        assert device.entered.wait(SECONDS)
        assert front.stop_ring(1) == 1
        assert [(u.head, u.length) for u in requests.ring.take(1)] == [(head, 0)]
        # The other queue goes on, and this one starts anew while that callback runs.
        buffers = Buffers(front)
        buffers.give(1)
        device.hears("stop 1", "buffers 0")
        assert device.rx.send(b"on") == 1
        assert buffers.frame() == b"on"
        front.start_ring(1, base=1)
        device.gate.set()
        (head,) = requests.give(1)
        assert [(u.head, u.length) for u in requests.come()] == [(head, 1)]
        assert front.stop_ring(1) == 2
        assert requests.ring.used_index == 2


def test_a_stop_is_not_held_up_by_a_front_end_that_waits_for_a_ring(vhost_socket: Path) -> None:
    device = Patient()
    backend = vu.Backend(device, socket=vhost_socket, drain=LONG).start()
    with FrontEnd.connect(str(vhost_socket)).start(2) as front:
        requests = Buffers(front, 1)
        requests.give(1)
        assert device.entered.wait(SECONDS)
        front.channel.command(Request.GET_VRING_BASE, wire.state(1, 0))
        device.hears("stop 1")
        stopper = threading.Thread(target=backend.stop, kwargs={"drain": 0})
        stopper.start()
        stopper.join(SECONDS / 2)
        assert not stopper.is_alive()
        # The request has failed before the answer that the front-end waits for.
        assert wire.STATE.unpack(front.channel.receive().payload) == (1, 1)
        assert requests.ring.used_index == 1
    device.gate.set()


@pytest.mark.parametrize(
    ("used", "available", "named", "begun"),
    [(300, 300, 0, 300), (0, 3, 3, 0), (0xFFFE, 1, 0, 0xFFFE), (300, 300, 300, 300)],
)
def test_a_ring_goes_on_from_its_used_index_and_that_is_said_once(
    vhost_socket: Path,
    caplog: pytest.LogCaptureFixture,
    used: int,
    available: int,
    named: int,
    begun: int,
) -> None:
    """DPDK's virtio-user names 0 at each reconnection, Cloud Hypervisor the driver's index."""
    caplog.set_level("DEBUG")
    with (
        vu.Backend(Port(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.negotiate().share_memory()
        ring = front.add_ring(1)
        # What the driver has made available already.
        for position in range(used, used + ((available - used) & 0xFFFF)):
            ring.set_slot(position, ring.lay([Segment(front.memory.allocate(8), 8, True)]))
        front.memory.write(ring.places.used + 2, struct.pack("<H", used))
        ring.available_index, ring.seen = available, used
        front.start_ring(1, base=named)
        ring.add([Segment(front.memory.allocate(8), 8, True)])
        ring.kick()
        count = (available - used + 1) & 0xFFFF
        assert len(ring.wait(count)) == count
        assert front.stop_ring(1) == (available + 1) & 0xFFFF == ring.used_index
    said = [r.getMessage() for r in caplog.records if "queue 1 started" in r.getMessage()]
    assert len(said) == 1
    assert f"base {begun}" in said[0]
    assert (f"not {named} as the front-end said" in said[0]) == (begun != named)
