"""`Queue.take`: buffers that a device takes by itself, and completions that belong together."""

import threading
from pathlib import Path

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.numbers import Feature
from peer.process import eventually
from peer.ring import INDIRECT, Segment, SplitRing

from .receivers import SECONDS, Buffers, Port, receiving

EVENT_IDX = [0, int(Feature.EVENT_IDX)]


def taken(queue: vu.Queue) -> vu.Request:
    """The next buffer, which is there."""
    request = queue.take()
    assert request is not None
    return request


@pytest.mark.parametrize("also", EVENT_IDX)
def test_buffers_are_taken_in_order_and_completed_in_any(vhost_socket: Path, also: int) -> None:
    device = Port()
    with receiving(device, vhost_socket, also=also) as front:
        buffers = Buffers(front)
        heads = buffers.give(3)
        device.hears("buffers 0")
        requests = [taken(device.rx) for _ in range(3)]
        assert device.rx.take() is None
        for number in (2, 0, 1):
            buffers.ring.used_event = buffers.ring.used_index
            requests[number].writable[:1] = bytes([number])
            requests[number].complete(1)
            (used,) = buffers.come()
            assert (used.head, buffers.data(used)) == (heads[number], bytes([number]))
        buffers.give(1)
        device.hears("buffers 0")
        device.hears_nothing_more()


def test_another_thread_may_take_of_the_batch_that_a_callback_has(vhost_socket: Path) -> None:
    class Lazy(Port):
        def on_queue(self, queue: vu.Queue, /) -> None:
            self.told.put("queue 1")
            rest.wait(SECONDS)
            super().on_queue(queue)

    rest = threading.Event()
    device = Lazy()
    with receiving(device, vhost_socket) as front:
        requests = Buffers(front, 1)
        (first,) = requests.give(1)
        device.hears("queue 1")
        # The callback has the first; the second waits in the ring.
        (second,) = requests.give(1)
        request = taken(device.queues[1])
        assert device.queues[1].take() is None
        rest.set()
        device.hears("queue 1")
        assert [(u.head, u.length) for u in requests.come()] == [(second, 0)]
        request.complete(3)
        assert [(u.head, u.length) for u in requests.come()] == [(first, 3)]


def test_what_is_taken_in_on_queue_outlives_it(vhost_socket: Path) -> None:
    class Taker(Port):
        def on_queue(self, queue: vu.Queue, /) -> None:
            while (request := queue.take()) is not None:
                kept.append(request)
            self.told.put("queue")

    kept: list[vu.Request] = []
    device = Taker()
    with receiving(device, vhost_socket) as front:
        requests = Buffers(front, 1)
        heads = requests.give(3)
        while len(kept) < 3:
            device.hears("queue")
        for request in reversed(kept):
            request.complete(2)
        assert [(u.head, u.length) for u in requests.come(3)] == [(h, 2) for h in reversed(heads)]


def test_what_a_callback_completes_on_several_queues_is_seen_when_it_returns(
    vhost_socket: Path,
) -> None:
    seen: list[tuple[int, int]] = []
    kept: list[vu.Request] = []

    class Mixed(Port):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                for buffer in kept:
                    buffer.writable[:2] = b"rx"
                    buffer.complete(2)
                    seen.append((buffers.ring.used_index, front.rings[1].used_index))
                request.complete(0)
                seen.append((buffers.ring.used_index, front.rings[1].used_index))

    device = Mixed()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give(3)
        device.hears("buffers 0")
        kept += [taken(device.rx) for _ in range(3)]
        front.rings[1].add([Segment(4096, 4)])
        front.rings[1].kick()
        used = buffers.ring.wait(1)
        # All three with the first call.
        assert (buffers.ring.used_index - buffers.ring.seen) & 0xFFFF == 2
        used += buffers.ring.take(2)
        assert [buffers.data(u) for u in used] == [b"rx"] * 3
        assert len(front.rings[1].wait()) == 1
        assert seen == [(0, 0)] * 4


def test_a_frame_of_kept_and_of_new_buffers_of_one_queue_is_seen_whole_and_in_order(
    vhost_socket: Path,
) -> None:
    kept: list[vu.Request] = []

    class Mergeable(Port):
        def on_queue(self, queue: vu.Queue, /) -> None:
            kept.extend(request.defer() for request in queue)
            if len(kept) < 3:
                self.told.put("kept")
                return
            for number, request in enumerate(kept):
                request.writable[:1] = bytes([number])
                request.complete(1)

    device = Mergeable()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front, 1)
        heads = buffers.give(1)
        device.hears("kept")
        ring = buffers.ring
        heads += [ring.lay([Segment(front.memory.allocate(8), 8, True)]) for _ in range(2)]
        ring.offer(*heads[1:])
        ring.kick()
        used = ring.wait(1)
        assert (ring.used_index - ring.seen) & 0xFFFF == 2, "all of it is there at the first call"
        used += ring.take(2)
        assert [u.head for u in used] == heads


def test_buffers_are_taken_by_two_threads_each_once(vhost_socket: Path) -> None:
    found: list[list[vu.Request]] = [[], []]
    device = Port()
    with receiving(device, vhost_socket, size=256) as front:
        buffers = Buffers(front, room=16)
        heads = buffers.give(250)
        device.hears("buffers 0")
        start = threading.Barrier(2)

        def take(into: list[vu.Request]) -> None:
            start.wait()
            while (request := device.rx.take()) is not None:
                into.append(request)

        threads = [threading.Thread(target=take, args=(into,)) for into in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert len(found[0]) + len(found[1]) == 250
        for request in found[0] + found[1]:
            request.complete(0)
        assert sorted(u.head for u in buffers.come(250)) == sorted(heads)


def offer_long_chains(front: FrontEnd, pieces: Segment, last: Segment) -> SplitRing:
    """Makes 300 buffers of 1024 pieces available, all by one table."""
    ring = front.rings[0]
    table = front.memory.allocate(16 * 1024)
    ring.write_table(table, [*[pieces] * 1023, last])
    for head in range(300):
        ring.set_descriptor(head, table, 16 * 1024, INDIRECT)
    ring.offer(*range(300))
    ring.kick()
    return ring


def test_a_device_that_has_all_the_pieces_it_may_is_told_when_there_are_more(
    vhost_socket: Path,
) -> None:
    """The chains in flight of a queue have 262144 pieces of memory at most: 256 chains of 1024."""
    device = Port(512)
    with receiving(device, vhost_socket, size=512) as front:
        piece = Segment(front.memory.allocate(8), 8, True)
        ring = offer_long_chains(front, piece, piece)
        device.hears("buffers 0")
        requests = [taken(device.rx) for _ in range(256)]
        assert device.rx.take() is None
        assert device.rx.send(b"late") == 0
        device.hears_nothing_more()
        requests.pop().complete(0)
        device.hears("buffers 0")
        assert device.rx.send(b"more") == 1
        for request in requests:
            request.complete(0)
        assert eventually(lambda: ring.used_index == 257)


def test_buffers_of_more_pieces_than_there_may_be_are_too_many_for_a_send(
    vhost_socket: Path,
) -> None:
    """Each has one byte that can be filled, behind 1023 pieces that are of no use."""
    device = Port(512)
    with receiving(device, vhost_socket, size=512) as front:
        place = front.memory.allocate(8)
        offer_long_chains(front, Segment(place, 1), Segment(place, 1, True))
        device.hears("buffers 0")
        with pytest.raises(vu.GuestError, match="256"):
            device.rx.send(bytes(300), max_buffers=300)
        device.hears_nothing_more()
        assert device.rx.send(b"ab", max_buffers=2) == 2
