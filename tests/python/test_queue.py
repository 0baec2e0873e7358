"""Devices of any type: `on_queue`, `Queue` and `Request`."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.ring import Segment


class Upper(vu.Device):
    """Answers with what it reads, in capitals."""

    device_id = 42

    def __init__(self, num_queues: int = 1) -> None:
        super().__init__(num_queues=num_queues, queue_size=64, config=b"\x01\x02\x03\x04")

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            text = bytes(request.readable).upper()
            request.writable[: len(text)] = text
            request.complete(len(text))


@contextmanager
def serving(device: vu.Device, socket: Path) -> Iterator[FrontEnd]:
    """A front-end with one ring on a device."""
    with vu.Backend(device, socket=socket), FrontEnd.connect(str(socket)).start() as front:
        yield front


class Chain:
    """A request of one readable and one writable part, each in pieces."""

    def __init__(self, front: FrontEnd, text: bytes, *rooms: int, split: int = 0) -> None:
        memory = self.memory = front.memory
        parts = [part for part in (text[:split], text[split:]) if part]
        out = [(memory.allocate(len(part)), part) for part in parts]
        for where, part in out:
            memory.write(where, part)
        self.rooms = [(memory.allocate(room), room) for room in rooms]
        segments = [Segment(where, len(part)) for where, part in out]
        segments += [Segment(where, room, True) for where, room in self.rooms]
        self.ring = front.rings[0]
        self.head = self.ring.add(segments)

    @property
    def answer(self) -> bytes:
        return b"".join(self.memory.read(where, room) for where, room in self.rooms)


def test_a_device_of_a_few_lines_is_served(vhost_socket: Path) -> None:
    with serving(Upper(), vhost_socket) as front:
        for split, rooms in ((0, (8,)), (3, (8,)), (2, (1, 2, 5))):
            chain = Chain(front, b"virtio", *rooms, split=split)
            front.rings[0].kick()
            (used,) = front.rings[0].wait()
            assert (used.head, used.length) == (chain.head, 6)
            assert chain.answer == b"VIRTIO\0\0"


def test_the_entropy_device_fills_what_it_is_given(vhost_socket: Path) -> None:
    with serving(vu.Rng(), vhost_socket) as front:
        chain = Chain(front, b"", 64, 64)
        front.rings[0].kick()
        (used,) = front.rings[0].wait()
        assert used.length == 128
        assert len(set(chain.answer)) > 16


def test_the_default_is_that_all_was_written(vhost_socket: Path) -> None:
    class Filler(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                request.writable[:] = b"f" * len(request.writable)
                request.complete()

    with serving(Filler(), vhost_socket) as front:
        chain = Chain(front, b"", 5, 6)
        front.rings[0].kick()
        (used,) = front.rings[0].wait()
        assert (used.length, chain.answer) == (11, b"f" * 11)


def test_a_queue_gives_what_was_found_and_no_more(vhost_socket: Path) -> None:
    seen: list[object] = []
    done = threading.Event()

    class Counting(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            seen.append((queue.index, queue.size))
            first = queue.batch(2)
            rest = list(queue)
            seen.append((len(first), len(rest), queue.batch(), list(queue)))
            for request in first + rest:
                request.complete(0)
            self.queue = queue
            done.set()

    device = Counting()
    with serving(device, vhost_socket) as front:
        chains = [Chain(front, b"x", 1) for _ in range(5)]
        front.rings[0].kick()
        used = front.rings[0].wait(5)
        assert [u.head for u in used] == [c.head for c in chains]
        assert done.wait(5)
        assert seen == [(0, 64), (2, 3, [], [])]
        with pytest.raises(vu.VhostUserError, match="only while on_queue runs"):
            device.queue.batch()


@pytest.mark.parametrize("size", [256, 512, 1024, 32_768])
def test_a_device_takes_rings_of_any_length_unless_it_says_less(
    vhost_socket: Path, size: int
) -> None:
    class AnyLength(Upper):
        def __init__(self) -> None:
            vu.Device.__init__(self)

    with vu.Backend(AnyLength(), socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate().share_memory().start_ring(0, size)
        chain = Chain(front, b"x", 1)
        front.rings[0].kick()
        front.rings[0].wait()
        assert chain.answer == b"X"


def test_a_ring_that_is_longer_than_the_device_says_is_refused(vhost_socket: Path) -> None:
    with (
        vu.Backend(Upper(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.negotiate().share_memory()
        assert not front.is_refused(Request.SET_VRING_NUM, wire.state(0, 64))
        assert front.is_refused(Request.SET_VRING_NUM, wire.state(0, 128))


REQUIRED = (
    "refused: SET_FEATURES: required: VERSION_1: the driver uses the legacy interface, which this "
    "device does not have (give QEMU's device disable-legacy=on)"
)


def test_a_driver_of_the_legacy_interface_is_refused_and_the_log_says_what_to_change(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        vu.Backend(Upper(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        legacy = front.channel.ask_u64(Request.GET_FEATURES) & ~(1 << 32)
        assert front.is_refused(Request.SET_FEATURES, wire.u64(legacy))
        front.negotiate()
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == [REQUIRED]


def test_a_transitional_device_serves_a_driver_of_the_legacy_interface(
    vhost_socket: Path,
) -> None:
    class Both(Upper):
        transitional = True

        def on_start(self) -> None:
            self.accepted = self.negotiated_features

    device = Both()
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate(never=1 << 32).share_memory().start_ring()
        chain = Chain(front, b"x", 1)
        front.rings[0].kick()
        front.rings[0].wait()
        assert chain.answer == b"X"
    assert not device.accepted & 1 << 32


@pytest.mark.parametrize("device", [vu.Rng(), vu.NullDisk(size=512)], ids=["rng", "disk"])
def test_entropy_devices_and_disks_are_transitional(vhost_socket: Path, device: vu.Device) -> None:
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate(never=1 << 32).share_memory().start_ring()
        front.rings[0].add([Segment(front.memory.allocate(16), 16, False)])
        front.rings[0].kick()
        assert front.rings[0].wait()[0].length == 0


@pytest.mark.parametrize(
    ("number", "bit", "name"), [(8, 1 << 2, "CHANGE"), (1, 1 << 18, "CTRL_RX")]
)
def test_a_harmless_bit_without_an_offer_is_ignored_and_that_is_said_once(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, number: int, bit: int, name: str
) -> None:
    class Some(Upper):
        device_id = number

        def on_start(self) -> None:
            self.accepted = self.negotiated_features

    caplog.set_level("INFO", "vhost_user")
    device = Some(num_queues=3)
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate()
        for _ in range(3):
            assert not front.is_refused(Request.SET_FEATURES, wire.u64(front.features | bit))
        assert front.is_refused(Request.SET_FEATURES, wire.u64(front.features | 1 << 37))
        front.share_memory().start_ring()
        front.stop_ring()
    assert not device.accepted & bit
    said = [r.getMessage().split(": ", 1)[1] for r in caplog.records if "ignored" in r.getMessage()]
    text = f"SET_FEATURES: {bit:#x} ({name}) was not offered, and is ignored: "
    assert said == [text + "the front-end answers the driver for it"]
    refused = [r.getMessage() for r in caplog.records if "not offered: " in r.getMessage()]
    assert [text.rpartition(": ")[2] for text in refused] == ["SR_IOV"]


def test_what_is_not_taken_stays_until_the_next_kick(vhost_socket: Path) -> None:
    class OneByOne(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue.batch(1):
                request.complete(0)

    with serving(OneByOne(), vhost_socket) as front:
        ring = front.rings[0]
        chains = [Chain(front, b"x", 1) for _ in range(3)]
        for chain in chains:
            ring.kick()
            (used,) = ring.wait()
            assert used.head == chain.head


def test_what_is_not_taken_before_a_refused_request_stays_with_it_until_the_next_kick(
    vhost_socket: Path,
) -> None:

    class Patient(vu.Device):
        device_id = 42

        def __init__(self) -> None:
            super().__init__(max_request_bytes=64)
            self.seen: list[bytes] = []
            self.takes = False
            self.called = threading.Event()

        def on_queue(self, queue: vu.Queue, /) -> None:
            takes = self.takes
            self.called.set()
            for request in queue if takes else ():
                self.seen.append(bytes(request.readable))
                request.complete(0)

    device = Patient()
    with serving(device, vhost_socket) as front:
        ring = front.rings[0]
        left = [Chain(front, text, 8) for text in (b"one", b"two")]
        refused = Chain(front, b"x" * 64, 8)
        ring.kick()
        assert device.called.wait(5)
        device.takes = True
        last = Chain(front, b"three", 8)
        ring.kick()
        used = ring.wait(4)
        assert {u.head for u in used} == {chain.head for chain in (*left, refused, last)}
        assert {u.length for u in used} == {0}
        assert device.seen == [b"one", b"two", b"three"]
        assert ring.used_index == 4


def test_requests_are_deferred_and_completed_in_any_order(vhost_socket: Path) -> None:
    kept: list[vu.Request] = []
    all_here = threading.Event()

    class Keeping(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            kept.extend(request.defer() for request in queue)
            if len(kept) == 3:
                all_here.set()

    with serving(Keeping(), vhost_socket) as front:
        chains = [Chain(front, b"x", 2, 2) for _ in range(3)]
        front.rings[0].kick()
        assert all_here.wait(5)
        for index in (2, 0, 1):
            kept[index].writable[:] = bytes([index] * 4)
            kept[index].complete()
            (used,) = front.rings[0].wait()
            assert used.head == chains[index].head
            assert chains[index].answer == bytes([index] * 4)
        with pytest.raises(vu.StaleRequestError):
            kept[0].complete()
        with pytest.raises(vu.StaleRequestError):
            kept[0].readable  # noqa: B018  # asked for only to see it refused


def test_a_request_that_is_deferred_and_not_kept_goes_back(vhost_socket: Path) -> None:
    class Forgetful(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                request.defer()

    with serving(Forgetful(), vhost_socket) as front:
        for _ in range(3):
            chain = Chain(front, b"x", 1)
            front.rings[0].kick()
            (used,) = front.rings[0].wait()
            assert (used.head, used.length) == (chain.head, 0)


def test_no_slot_is_lost_to_a_device_that_never_completes(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Lazy(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            list(queue)

    with serving(Lazy(), vhost_socket) as front:
        for _ in range(65):
            chain = Chain(front, b"x", 1)
            front.rings[0].kick()
            (used,) = front.rings[0].wait()
            assert (used.head, used.length) == (chain.head, 0)
    told = [r for r in caplog.records if "neither completed nor deferred" in r.getMessage()]
    assert len(told) == 1


def test_more_bytes_than_there_is_room_for_are_refused(vhost_socket: Path) -> None:
    errors: list[str] = []

    class Boaster(Upper):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                for written in (9, 1 << 40):
                    with pytest.raises(ValueError, match="room for 8") as caught:
                        request.complete(written)
                    errors.append(str(caught.value))
                for number in (-1, 1 << 64):
                    text = f"written is a number of bytes, not {number}"
                    with pytest.raises(ValueError, match=text):
                        request.complete(number)
                with pytest.raises(ValueError, match="max is a number of requests, not -1"):
                    queue.batch(-1)
                request.complete(8)

    with serving(Boaster(), vhost_socket) as front:
        Chain(front, b"x", 8)
        front.rings[0].kick()
        (used,) = front.rings[0].wait()
        assert used.length == 8
    assert len(errors) == 2


def test_the_driver_reads_the_configuration_and_hears_of_changes(vhost_socket: Path) -> None:
    device = Upper()
    with vu.Backend(device, socket=vhost_socket), vu.Frontend(vhost_socket) as front:
        assert front.config(0, 4) == b"\x01\x02\x03\x04"
        device.notify_config(b"\x05\x06\x07\x08")
        assert front.config(1, 2) == b"\x06\x07"
    with pytest.raises(ValueError, match="256"):
        device.notify_config(bytes(257))


def test_a_device_needs_its_base_and_sane_numbers() -> None:
    class Half(vu.Device):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"Half.__init__ must call super"):
        vu.Backend(Half(), socket="x")
    incomplete: dict[str, object] = {
        r"not its class: write Upper\(\.\.\.\)": Upper,
        "str is not a vhost_user.Device": "upper",
        "Device has no device_id": vu.Device(),
        "Idle has no on_queue": type("Idle", (vu.Device,), {"device_id": 42})(),
    }
    for message, device in incomplete.items():
        with pytest.raises(TypeError, match=message):
            vu.Backend(device, socket="x")  # type: ignore[arg-type]
    wrong: list[Callable[[], vu.Device]] = [
        lambda: vu.Device(num_queues=257),
        lambda: vu.Device(queue_size=100),
        lambda: vu.Device(features=-1),
        lambda: vu.Device(config=bytes(257)),
    ]
    for make in wrong:
        with pytest.raises(ValueError, match=r"not|others"):
            make()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_queues": 2.0}, "num_queues is a number of queues, as 2, not 2.0"),
        ({"queue_size": "64"}, "queue_size is a number of entries, as 256, not '64'"),
        ({"features": None}, "features is a number, as 1 << 5, not None"),
        ({"max_request_bytes": "1M"}, "a number of bytes, as 1 << 20, not '1M'"),
        ({"receive_queues": 0}, r"a tuple of queue numbers, as \(0,\), not 0"),
        ({"receive_queues": "0"}, r"a tuple of queue numbers, as \(0,\), not '0'"),
        ({"receive_queues": (0.0,)}, r"as \(0,\), not \(0.0,\)"),
        ({"config": "abc"}, "config is bytes, not 'abc'"),
        ({"config": 5}, "config is bytes, not 5"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named_with_what_to_write(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        vu.Device(**options)


def test_a_device_type_that_is_no_number_is_refused(vhost_socket: Path) -> None:
    class Net(Upper):
        device_id = "net"  # type: ignore[assignment]

    text = r"Net.device_id is the number of a device type, as 4 .*, not 'net'"
    with pytest.raises(TypeError, match=text):
        vu.Backend(Net(), socket=vhost_socket)


def test_queues_before_a_back_end_serves_them_are_an_error_that_says_when() -> None:
    text = "Upper.queues: no back-end serves this device yet; use it in on_start or later"
    with pytest.raises(vu.VhostUserError, match=text):
        _ = Upper().queues


def test_the_driver_writes_the_configuration_where_the_device_takes_it(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[tuple[int, bytes]] = []

    class Taking(Upper):
        def write_config(self, offset: int, data: bytes, /) -> None:
            if offset:
                raise ValueError(offset)
            written.append((offset, data))

    with serving(Taking(), vhost_socket) as front:
        write = wire.config(0, 2, b"ab")
        assert not front.is_refused(Request.SET_CONFIG, write)
        assert front.is_refused(Request.SET_CONFIG, wire.config(1, 2, b"ab"))
    assert written == [(0, b"ab")]
    assert [r.getMessage().split(": ")[1] for r in caplog.records if r.exc_info] == [
        "Taking.write_config raised ValueError (a call from the back-end)"
    ]
    with serving(Upper(), vhost_socket) as front:
        assert front.is_refused(Request.SET_CONFIG, write)
