"""`Queue.send`: data goes into the driver's buffers wholly or not at all."""

import array
import random
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.numbers import Feature
from peer.ring import Segment

from .receivers import SECONDS, Buffers, Port, receiving

EVENT_IDX = [0, int(Feature.EVENT_IDX)]


@pytest.mark.parametrize("also", EVENT_IDX)
def test_data_sent_by_any_thread_is_seen_and_told_of(vhost_socket: Path, also: int) -> None:
    device = Port()
    with receiving(device, vhost_socket, also=also) as front:
        buffers = Buffers(front)
        heads = buffers.give(3)
        device.hears("buffers 0")
        for number, head in enumerate(heads):
            buffers.ring.used_event = buffers.ring.used_index
            text = b"frame %d" % number
            assert device.rx.send(text) == 1
            (used,) = buffers.come()
            assert (used.head, buffers.data(used)) == (head, text)
        device.hears_nothing_more()


def test_parts_of_any_kind_of_buffer_are_joined(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give()
        device.hears("buffers 0")
        inner, words = memoryview(b"xefx")[1:3], array.array("H", [0x6867])
        assert device.rx.send(b"ab", bytearray(b"cd"), inner, words, b"") == 1
        assert buffers.frame() == b"abcdefgh"


def test_data_of_no_byte_takes_one_buffer(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give(2)
        device.hears("buffers 0")
        assert [device.rx.send(b""), device.rx.send(b"", b"")] == [1, 1]
        assert [used.length for used in buffers.come(2)] == [0, 0]


def test_a_frame_over_several_buffers_fills_each_and_says_how_many_they_are(
    vhost_socket: Path,
) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front, room=100)
        heads = buffers.give(5)
        device.hears("buffers 0")
        header, body = bytes(12), random.Random(7).randbytes(238)
        assert device.rx.send(header, body, max_buffers=5, count_at=10) == 3
        used = buffers.come(3)
        assert [(u.head, u.length) for u in used] == [(h, 100) for h in heads[:2]] + [
            (heads[2], 50)
        ]
        frame = b"".join(buffers.data(u) for u in used)
        assert frame == bytes(10) + struct.pack("<H", 3) + body
        assert buffers.ring.used_index == 3, "the other two were left"


def test_the_count_may_lie_on_the_border_of_two_buffers(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front, room=11)
        buffers.give(64)
        device.hears("buffers 0")
        assert device.rx.send(b"\xff" * 33, max_buffers=64, count_at=10) == 3
        assert buffers.frame(3) == b"\xff" * 10 + b"\x03\x00" + b"\xff" * 21


def test_a_buffer_in_several_pieces_is_filled_from_piece_to_piece(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        ring, memory = front.rings[0], front.memory
        places = [(memory.allocate(room), room) for room in (3, 1, 5)]
        ring.add([Segment(place, room, True) for place, room in places])
        ring.kick()
        device.hears("buffers 0")
        assert device.rx.send(b"abcde", b"fgh") == 1
        assert ring.wait(1)[0].length == 8
        assert b"".join(memory.read(*place) for place in places) == b"abcdefgh\0"


def test_what_a_driver_wrote_in_front_of_a_buffer_stays(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        ring, memory = front.rings[0], front.memory
        out, into = memory.allocate(4), memory.allocate(4)
        memory.write(out, b"keep")
        ring.add([Segment(out, 4), Segment(into, 4, True)])
        ring.kick()
        device.hears("buffers 0")
        assert device.rx.send(b"new!") == 1
        assert ring.wait(1)[0].length == 4
        assert (memory.read(out, 4), memory.read(into, 4)) == (b"keep", b"new!")


@pytest.mark.parametrize("also", EVENT_IDX)
def test_too_few_buffers_take_nothing_and_more_are_told_of_once(
    vhost_socket: Path, also: int
) -> None:
    device = Port()
    with receiving(device, vhost_socket, also=also) as front:
        buffers = Buffers(front, room=10)
        buffers.give(2)
        device.hears("buffers 0")
        for _ in range(3):
            assert device.rx.send(bytes(25), max_buffers=3) == 0
        front.lives()
        device.hears_nothing_more()
        buffers.give(1)
        device.hears("buffers 0")
        assert device.rx.send(b"x" * 25, max_buffers=3) == 3
        assert buffers.frame(3) == b"x" * 25
        # It was not told again, and asked for nothing: what comes is no news.
        buffers.give(1)
        assert front.lives()
        assert device.rx.send(b"y") == 1
        assert buffers.frame() == b"y"
        device.hears_nothing_more()
        # With none left, the next one is.
        assert device.rx.send(b"z") == 0
        buffers.give(1)
        device.hears("buffers 0")
        assert device.rx.send(b"z") == 1
        assert buffers.frame() == b"z"


@pytest.mark.parametrize("also", EVENT_IDX)
def test_each_lack_of_buffers_is_followed_by_a_call_when_there_is_one(
    vhost_socket: Path, also: int
) -> None:
    """A wake-up that is lost would stop this."""
    device = Port()
    with receiving(device, vhost_socket, size=1, also=also) as front:
        buffers = Buffers(front, room=4)
        for turn in range(500):
            assert device.rx.send(b"none") == 0
            (head,) = buffers.give()
            device.hears("buffers 0")
            buffers.ring.used_event = buffers.ring.used_index
            assert device.rx.send(struct.pack("<I", turn)) == 1
            (used,) = buffers.come()
            assert (used.head, buffers.data(used)) == (head, struct.pack("<I", turn))


def test_data_that_can_never_fit_is_an_error_of_the_guest_and_takes_nothing(
    vhost_socket: Path,
) -> None:
    device = Port()
    with receiving(device, vhost_socket, size=4) as front:
        buffers = Buffers(front, room=10)
        buffers.give(4)
        device.hears("buffers 0")
        with pytest.raises(vu.GuestError, match=r"11 bytes .* 1 buffers of 10 bytes"):
            device.rx.send(bytes(11))
        with pytest.raises(vu.GuestError, match=r"31 bytes .* 3 buffers of 30 bytes"):
            device.rx.send(bytes(31), max_buffers=3)
        with pytest.raises(vu.GuestError, match=r"41 bytes .* 4 buffers of 40 bytes"):
            device.rx.send(bytes(41), max_buffers=9)
        assert device.rx.send(b"q" * 40, max_buffers=4) == 4
        assert buffers.frame(4) == b"q" * 40


def test_buffers_with_no_room_are_an_error_of_the_guest(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give(1, room=0, readable=8)
        device.hears("buffers 0")
        with pytest.raises(vu.GuestError, match=r"1 bytes .* 1 buffers of 0 bytes"):
            device.rx.send(b"x")
        buffers.give(1)
        assert device.rx.send(b"x", max_buffers=2) == 2
        assert [used.length for used in buffers.come(2)] == [0, 1]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_buffers": 0}, ValueError, "max_buffers is 1 to 65535, not 0"),
        ({"max_buffers": -1}, ValueError, "max_buffers is 1 to 65535, not -1"),
        ({"max_buffers": 1 << 16}, ValueError, "max_buffers is 1 to 65535, not 65536"),
        ({"max_buffers": "2"}, TypeError, "max_buffers"),
        ({"count_at": -1}, ValueError, "count_at is an offset into the data, not -1"),
        ({"count_at": 3}, ValueError, "count_at 3 leaves no room for 2 bytes in data of 4"),
        ({"count_at": (1 << 64) - 1}, ValueError, "leaves no room"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    vhost_socket: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give()
        device.hears("buffers 0")
        with pytest.raises(error, match=text):
            device.rx.send(b"data", **options)
        assert device.rx.send(b"data") == 1
        assert buffers.frame() == b"data"


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ((), ValueError, "nothing to send"),
        (("hi",), TypeError, "part 1 is bytes or another buffer, not str: encode it"),
        ((b"a", 5), TypeError, "part 2 is bytes or another buffer, not int$"),
    ],
)
def test_what_is_no_data_is_refused_and_takes_no_buffer(
    vhost_socket: Path, parts: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give()
        device.hears("buffers 0")
        with pytest.raises(error, match=text):
            device.rx.send(*parts)
        assert buffers.ring.used_index == 0
        assert device.rx.send(b"data") == 1
        assert buffers.frame() == b"data"


def test_nothing_is_sent_while_no_ring_runs(vhost_socket: Path) -> None:
    device = Port()
    with vu.Backend(device, socket=vhost_socket):
        assert (device.rx.send(b"x"), device.rx.take()) == (0, None)
        with FrontEnd.connect(str(vhost_socket)).start(2) as front:
            buffers = Buffers(front)
            buffers.give(2)
            device.hears("buffers 0")
            assert device.rx.send(b"x") == 1
            front.stop_ring(0)
            assert (device.rx.send(b"x"), device.rx.take()) == (0, None)
            assert buffers.ring.used_index == 1
            buffers.come()
            front.configure_ring(0, base=1)
            front.hand_over_events(0)
            front.enable(0)
            device.hears("buffers 0")
            assert device.rx.send(b"y") == 1
            assert buffers.frame() == b"y"
    assert (device.rx.send(b"x"), device.rx.take()) == (0, None)


def test_a_device_that_found_a_disabled_queue_hears_when_it_is_enabled(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        buffers.give(2)
        device.hears("buffers 0")
        front.enable(0, 0)
        assert (device.rx.send(b"x"), device.rx.take()) == (0, None)
        assert buffers.ring.used_index == 0
        front.enable(0, 1)
        device.hears("buffers 0")
        assert device.rx.send(b"x") == 1
        assert buffers.frame() == b"x"
        device.hears_nothing_more()


def test_what_a_callback_sends_is_published_when_it_returns(vhost_socket: Path) -> None:
    seen: list[int] = []

    class Echo(Port):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                for _ in range(3):
                    assert self.rx.send(bytes(request.readable)) == 1
                    seen.append(ring.used_index)
                request.complete(0)

    device = Echo()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front)
        ring = buffers.ring
        buffers.give(3)
        device.hears("buffers 0")
        where = front.memory.allocate(4)
        front.memory.write(where, b"echo")
        front.rings[1].add([Segment(where, 4)])
        front.rings[1].kick()
        assert buffers.frame(3) == b"echo" * 3
        assert seen == [0, 0, 0]


def test_a_driver_that_breaks_the_ring_is_told_and_the_other_queue_goes_on(
    vhost_socket: Path,
) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front, room=10)
        ring = buffers.ring
        buffers.give(1)
        device.hears("buffers 0")
        # A second one whose chain has no end.
        head = ring.lay([Segment(front.memory.allocate(10), 10, True)])
        ring.set_descriptor(head, 4096, 10, 3, head)
        ring.offer(head)
        assert device.rx.send(bytes(15), max_buffers=2) == 0
        assert ring.is_broken(SECONDS)
        assert ring.used_index == 0
        assert (device.rx.send(b"x"), device.rx.take()) == (0, None)
        front.rings[1].add([Segment(4096, 4)])
        front.rings[1].kick()
        assert len(front.rings[1].wait()) == 1
        # The first of the two was put back.
        assert front.stop_ring(0) == 0


def test_a_frame_goes_around_a_buffer_that_is_not_in_memory(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front, room=10)
        heads = buffers.give(3, outside=[1])
        device.hears("buffers 0")
        assert device.rx.send(bytes(20), max_buffers=3) == 2
        lengths = [(used.head, used.length) for used in buffers.come(3)]
        assert lengths == [(heads[1], 0), (heads[0], 10), (heads[2], 10)]
        assert front.stop_ring(0) == 3


def test_too_few_buffers_beside_one_that_is_not_in_memory_go_back_empty(
    vhost_socket: Path,
) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        buffers = Buffers(front, room=10)
        heads = buffers.give(2, outside=[1])
        device.hears("buffers 0")
        assert device.rx.send(bytes(20), max_buffers=3) == 0
        back = [(used.head, used.length) for used in buffers.come(2)]
        assert sorted(back) == [(head, 0) for head in sorted(heads)]
        buffers.give(2)
        device.hears("buffers 0")
        assert device.rx.send(bytes(20), max_buffers=3) == 2
        buffers.come(2)
        assert front.stop_ring(0) == 4


@pytest.mark.parametrize("name", ["send", "take"])
def test_one_call_gives_back_64_buffers_that_are_not_in_memory_and_another_follows(
    vhost_socket: Path, name: str
) -> None:
    """A driver with thousands of them keeps neither the queue nor the interpreter."""
    device = Port()
    with receiving(device, vhost_socket, size=256) as front:
        buffers = Buffers(front, room=10)
        buffers.give(200, outside=range(200))
        for given_back in (64, 128, 192, 200):
            device.hears("buffers 0")
            assert device.rx.send(b"data") == 0 if name == "send" else device.rx.take() is None
            assert buffers.ring.used_index == given_back
        device.hears_nothing_more()
        assert [used.length for used in buffers.come(200)] == [0] * 200
        assert front.stop_ring(0) == 200


def test_an_index_that_jumps_breaks_the_ring_when_it_is_sent_into(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as front:
        ring = front.rings[0]
        ring.available_index = 65
        assert device.rx.send(b"x") == 0
        assert ring.is_broken(SECONDS)


@pytest.mark.parametrize("size", [1, 2, 256])
def test_frames_come_in_order_across_the_wrap_of_the_index(vhost_socket: Path, size: int) -> None:
    device = Port()
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate().share_memory()
        start = 0xFFFF - 3
        ring = front.add_ring(0, size)
        for index in (ring.places.available + 2, ring.places.used + 2):
            front.memory.write(index, struct.pack("<H", start))
        ring.seen = start
        front.start_ring(0, size, base=start)
        buffers = Buffers(front, room=8)
        for number in range(12):
            buffers.give(min(2, size))
            device.hears("buffers 0")
            for part in range(min(2, size)):
                text = b"%d.%d" % (number, part)
                assert device.rx.send(text) == 1
                assert buffers.frame() == text
            assert device.rx.send(b"") == 0
        assert front.stop_ring(0) == (start + 12 * min(2, size)) & 0xFFFF


def test_the_largest_ring_is_filled_with_one_send(vhost_socket: Path) -> None:
    device = Port(32768)
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate().share_memory()
        front.start_ring(0, 32768)
        ring = front.rings[0]
        place = front.memory.allocate(32768 * 2)
        heads = [ring.lay([Segment(place + 2 * n, 2, True)]) for n in range(32768)]
        ring.offer(*heads)
        ring.kick()
        device.hears("buffers 0")
        data = random.Random(3).randbytes(65536)
        with pytest.raises(vu.GuestError, match="32768 buffers of 65536 bytes"):
            device.rx.send(data, b"x", max_buffers=65535)
        assert device.rx.send(data, max_buffers=65535) == 32768
        assert len(ring.wait(32768)) == 32768
        assert front.memory.read(place, 65536) == data
        assert front.stop_ring(0) == 32768


def test_frames_of_two_threads_are_whole_and_each_keeps_its_order(vhost_socket: Path) -> None:
    """Over three buffers each; a driver sees no part of one without the rest."""
    frames = 400
    free = threading.Semaphore(0)

    def send(name: int) -> None:
        for number in range(frames):
            data = struct.pack("<HBHH", 0, name, number, 0) + bytes([name]) * 20
            while not device.rx.send(data, max_buffers=3, count_at=0):
                assert free.acquire(timeout=SECONDS)

    class Told(Port):
        def on_buffers(self, queue: vu.Queue, /) -> None:
            free.release(2)

    device = Told()
    with receiving(device, vhost_socket, size=16) as front:
        buffers = Buffers(front, room=10)
        ring, seen = buffers.ring, {1: 0, 2: 0}
        buffers.give(15)
        senders = [threading.Thread(target=send, args=(name,)) for name in seen]
        for sender in senders:
            sender.start()
        for _ in range(2 * frames):
            used = ring.wait(1, SECONDS)
            (count,) = struct.unpack("<H", buffers.data(used[0])[:2])
            assert count == 3
            # No call is waited for: all of it is there.
            assert (ring.used_index - ring.seen) & 0xFFFF >= 2
            used += ring.take(2)
            frame = b"".join(buffers.data(u) for u in used)
            _, name, number, _ = struct.unpack("<HBHH", frame[:7])
            assert (number, frame[7:]) == (seen[name], bytes([name]) * 20)
            seen[name] += 1
            buffers.give_again(used)
        for sender in senders:
            sender.join(SECONDS)
        assert seen == {1: frames, 2: frames}
