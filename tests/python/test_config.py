"""The configuration space of a device of any type: who answers a read of it."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import BackendRequest, ProtocolFeature, Request
from peer.ring import Segment

from .disks import RamDisk

SPACE = 136
"""VIRTIO 1.3, "Input Device": bytes of its configuration space."""


class Input(vu.Device):
    """Has a space whose bytes follow from the selection that a driver writes."""

    device_id = 18
    subsel = 0

    def __init__(self) -> None:
        super().__init__(num_queues=2, config=b"\xee" * SPACE)

    def on_queue(self, queue: vu.Queue, /) -> None:
        pass

    def selected(self) -> bytes:
        return bytes([1, self.subsel, 4, 0, 0, 0, 0, 0]) + b"name" + bytes(124)


def select(front: FrontEnd, subsel: int) -> None:
    front.change(Request.SET_CONFIG, wire.config(0, SPACE, bytes([1, subsel]) + bytes(134)))


def read(front: FrontEnd, offset: int, size: int) -> bytes:
    return front.channel.ask(Request.GET_CONFIG, wire.config(offset, size, bytes(size)))[12:]


def negotiated(path: Path) -> FrontEnd:
    return FrontEnd.connect(str(path)).negotiate()


def test_a_device_answers_reads_of_its_configuration_itself(vhost_socket: Path) -> None:
    asked: list[tuple[int, int]] = []

    class Answering(Input):
        def write_config(self, offset: int, data: bytes, /) -> None:
            self.subsel = data[1]

        def read_config(self, offset: int, length: int, /) -> bytes:
            asked.append((offset, length))
            return self.selected()[offset : offset + length]

    with vu.Backend(Answering(), socket=vhost_socket), negotiated(vhost_socket) as front:
        for subsel in (0, 5):
            select(front, subsel)
            assert read(front, 0, 12) == bytes([1, subsel, 4, 0, 0, 0, 0, 0]) + b"name"
        assert read(front, 1, 1) == b"\5"
        # What lies past the end is zero, and none of the device's business.
        assert read(front, 8, 200) == b"name" + bytes(196)
        assert read(front, 136, 4) == bytes(4)
    assert asked == [(0, 12), (0, 12), (1, 1), (8, 128)]


Answer = Callable[[int, int], object]


def raises(_offset: int, _length: int) -> object:
    raise OSError(5, "the chip does not answer")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _o, length: bytes(length - 1), "3 bytes, where 4 were asked for"),
        (lambda _o, length: bytes(length + 1), "5 bytes, where 4 were asked for"),
        (lambda _o, _n: "name", "returned str, where it is to return bytes"),
        (lambda _o, _n: None, "returned NoneType, where it is to return bytes"),
        (raises, "the chip does not answer"),
    ],
)
def test_a_read_that_the_device_fails_is_answered_from_config_and_told_once(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, answer: Answer, told: str
) -> None:
    class Failing(Input):
        def read_config(self, offset: int, length: int, /) -> bytes:
            return answer(offset, length)  # type: ignore[return-value]

    with vu.Backend(Failing(), socket=vhost_socket), negotiated(vhost_socket) as front:
        for _ in range(3):
            assert read(front, 2, 4) == b"\xee" * 4
        assert front.lives()
    (record,) = [r for r in caplog.records if r.exc_info]
    assert "Failing.read_config raised" in record.getMessage()
    assert "(offset 2, 4 bytes)" in record.getMessage()
    assert record.exc_info is not None
    assert told in str(record.exc_info[1])


def test_a_bytearray_will_do_and_super_answers_from_config(vhost_socket: Path) -> None:
    class Patching(Input):
        def read_config(self, offset: int, length: int, /) -> bytes:
            space = bytearray(super().read_config(offset, length))
            space[0] = 7
            return space  # type: ignore[return-value]

    with vu.Backend(Patching(), socket=vhost_socket), negotiated(vhost_socket) as front:
        assert read(front, 3, 3) == b"\x07\xee\xee"


def test_config_is_assigned_while_served_without_a_notice(vhost_socket: Path) -> None:
    class Assigning(Input):
        def write_config(self, offset: int, data: bytes, /) -> None:
            self.subsel = data[1]
            self.config = self.selected()

    device = Assigning()
    device.config = bytes(SPACE)
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        vu.Backend(device, socket=vhost_socket),
        negotiated(vhost_socket) as front,
    ):
        front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        notices = wire.Channel(ours)
        for subsel in (0, 5):
            select(front, subsel)
            assert read(front, 0, 12) == bytes([1, subsel, 4, 0, 0, 0, 0, 0]) + b"name"
            assert device.config == device.selected()
        device.config = bytearray(SPACE)  # type: ignore[assignment]
        assert read(front, 0, 12) == bytes(12)
        assert notices.silent()
        device.notify_config(b"\1" * SPACE)
        assert notices.receive().request == BackendRequest.CONFIG_CHANGE_MSG
        assert read(front, 130, 6) == b"\1" * 6
        assert notices.silent()


def test_the_length_of_config_stays_while_the_device_is_served(vhost_socket: Path) -> None:
    device = Input()
    device.config = bytes(8)
    device.config = bytes(SPACE)
    with vu.Backend(device, socket=vhost_socket), negotiated(vhost_socket) as front:
        for change in (device.notify_config, lambda space: setattr(device, "config", space)):
            for length in (0, 135, 137):
                with pytest.raises(ValueError, match=f"136 bytes.*not {length}$"):
                    change(bytes(length))
        assert device.config == bytes(SPACE)
        assert read(front, 0, 140) == bytes(140)
    device.config = bytes(8)
    for wrong, error in (
        (bytes(257), ValueError),
        (8, TypeError),
        ("name", TypeError),
        ([1, 2], TypeError),
    ):
        with pytest.raises(error):
            device.config = wrong  # type: ignore[assignment]
    assert device.config == bytes(8)


def test_a_slow_callback_does_not_hold_up_a_read_for_ever(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Input):
        def on_queue(self, queue: vu.Queue, /) -> None:
            for request in queue:
                entered.set()
                assert go_on.wait(20)
                request.complete(0)

        def read_config(self, offset: int, length: int, /) -> bytes:
            return bytes(length)

    with (
        vu.Backend(Slow(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start() as front,
    ):
        ring = front.rings[0]
        ring.add([Segment(front.memory.allocate(8), 8, True)])
        ring.kick()
        assert entered.wait(10)
        assert read(front, 0, 4) == b"\xee" * 4
        go_on.set()
        ring.wait()
        assert read(front, 0, 4) == bytes(4)
    assert any("read_config was not called" in r.getMessage() for r in caplog.records)


def test_callbacks_for_a_space_that_is_not_the_devices_are_refused(vhost_socket: Path) -> None:
    def takes(_self: object, _offset: int, _data: bytes, /) -> None:
        pass

    def answers(_self: object, _offset: int, length: int, /) -> bytes:
        return bytes(length)

    for name, callback in (("read_config", answers), ("write_config", takes)):
        disk = type("Disk", (RamDisk,), {name: callback})()
        with pytest.raises(TypeError, match=rf"Disk.{name} would never be called"):
            vu.Backend(disk, socket=vhost_socket)
    plain = type("Plain", (Input,), {"read_config": answers})()
    plain.config = b""
    with pytest.raises(ValueError, match=r"Plain.read_config would never be called"):
        vu.Backend(plain, socket=vhost_socket)
    disk = vu.NullDisk(size=512)
    with pytest.raises(vu.VhostUserError, match="a disk's configuration space is its own"):
        disk.config = bytes(96)


def test_a_network_device_counts_pairs_and_offers_config_only_if_it_has_one(
    vhost_socket: Path,
) -> None:
    class Net(Input):
        device_id = 1

        def __init__(self, num_queues: int, config: bytes) -> None:
            vu.Device.__init__(self, num_queues=num_queues, config=config)

    for queues, pairs, config in ((2, 1, b""), (4, 2, b""), (5, 2, bytes(6))):
        with (
            vu.Backend(Net(queues, config), socket=vhost_socket),
            negotiated(vhost_socket) as front,
        ):
            assert front.channel.ask_u64(Request.GET_QUEUE_NUM) == pairs
            offers = front.protocol_offered & ProtocolFeature.CONFIG
            assert bool(offers) == bool(config)
            # All of its queues are there nevertheless.
            front.change(Request.SET_VRING_NUM, wire.state(queues - 1, 64))
            assert front.is_refused(Request.SET_VRING_NUM, wire.state(queues, 64))
    with pytest.raises(ValueError, match="num_queues is 2 or more, not 1"):
        vu.Backend(Net(1, b""), socket=vhost_socket)
