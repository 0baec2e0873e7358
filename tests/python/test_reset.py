"""What a device hears of a reset, and what its status says."""

from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import WANTED, FrontEnd
from peer.numbers import ProtocolFeature, Request
from peer.ring import Segment

DRIVER_OK = 0xF
"""ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK: VIRTIO 1.3, "Device Status Field"."""


class Calls(vu.Device):
    """Writes down the callbacks, and the status that each of them sees."""

    calls: list[tuple[str, int]]

    def note(self, name: str) -> None:
        self.calls.append((name, self.status))

    def on_start(self) -> None:
        self.note("start")

    def on_stop(self) -> None:
        self.note("stop")

    def on_reset(self) -> None:
        self.note("reset")

    def on_disconnect(self) -> None:
        self.note("disconnect")

    def names(self) -> list[str]:
        """The callbacks since the last call."""
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names


class Chip(Calls):
    """A device of any type."""

    device_id = 41

    def __init__(self) -> None:
        super().__init__(queue_size=64)
        self.calls = []

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            request.complete(0)


class Disk(Calls, vu.BlockDevice):
    """A disk; its requests are not in question here, but that they are answered."""

    def __init__(self) -> None:
        vu.BlockDevice.__init__(self, size=1 << 20, queue_size=64)
        self.calls = []

    def read(self, offset: int, buf: memoryview, /) -> None:
        pass

    def write(self, offset: int, buf: memoryview, /) -> None:
        pass


def use(front: FrontEnd, times: int = 1) -> None:
    """The driver has `times` requests answered. To a disk they are malformed, and answered too."""
    ring = front.rings[0]
    for _ in range(times):
        ring.add(
            [Segment(front.memory.allocate(16), 16), Segment(front.memory.allocate(1), 1, True)]
        )
        ring.kick()
        ring.wait()


def set_status(front: FrontEnd, byte: int) -> None:
    front.change(Request.SET_STATUS, wire.u64(byte))


def pause(front: FrontEnd, *, status: bool = True) -> int:
    """As QEMU does it at `stop`."""
    front.enable(on=0)
    base = front.stop_ring()
    if status:
        set_status(front, 0)
    return base


def goes_on(front: FrontEnd, base: int, *, status: bool = True) -> None:
    front.start_ring(base=base)
    if status:
        set_status(front, DRIVER_OK)


@pytest.mark.parametrize("kind", [Chip, Disk])
def test_a_reset_is_told_once_and_a_pause_is_none(
    vhost_socket: Path, kind: type[Chip] | type[Disk]
) -> None:
    device = kind()
    with (
        vu.Backend(device, socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start() as front,
    ):
        set_status(front, DRIVER_OK)
        use(front, 3)
        base = pause(front)
        assert base == 3
        goes_on(front, base)
        use(front)
        assert device.names() == ["start", "stop", "start"]
        pause(front)
        for _ in range(3):
            front.change(Request.RESET_DEVICE)
        assert device.names() == ["stop", "reset"]
        front.rings[0].reset()
        goes_on(front, 0)
        use(front)
        assert device.names() == ["start"]
        # With the rings running, too.
        front.change(Request.RESET_DEVICE)
        assert device.names() == ["stop", "reset"]


def test_status_0_is_a_reset_where_there_is_no_message_for_one(vhost_socket: Path) -> None:
    device = Chip()
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate(protocol=WANTED & ~ProtocolFeature.RESET_DEVICE).share_memory()
        front.start_ring()
        set_status(front, DRIVER_OK)
        for _ in range(2):
            set_status(front, 0)
        assert device.names() == ["start", "stop", "reset"]


@pytest.mark.parametrize("status", [True, False])
@pytest.mark.parametrize("kind", [Chip, Disk])
def test_a_reset_that_nobody_tells_shows_when_the_queue_starts_anew(
    vhost_socket: Path, kind: type[Chip] | type[Disk], status: bool
) -> None:
    device = kind()
    untold = ProtocolFeature.RESET_DEVICE | ProtocolFeature.STATUS
    protocol = WANTED if status else WANTED & ~untold
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate(protocol=protocol).share_memory()
        features = device.negotiated_features
        goes_on(front, 0, status=status)
        use(front, 3)
        assert device.names() == ["start"]
        goes_on(front, pause(front, status=status), status=status)
        assert device.names() == ["stop", "start"]
        pause(front, status=status)
        front.rings[0].reset()
        goes_on(front, 0, status=status)
        assert device.names() == ["stop", "reset", "start"]
        assert device.negotiated_features == features != 0
        use(front)


def test_a_front_end_that_leaves_resets_nothing(vhost_socket: Path) -> None:
    device = Chip()
    with vu.Backend(device, socket=vhost_socket):
        with FrontEnd.connect(str(vhost_socket)).start() as front:
            set_status(front, DRIVER_OK)
        with FrontEnd.connect(str(vhost_socket)).negotiate() as front:
            assert device.names() == ["start", "stop", "disconnect"]
            # Whoever comes next may reset what the last one left.
            for _ in range(2):
                front.change(Request.RESET_DEVICE)
            assert device.names() == ["reset"]


def test_callbacks_see_the_status_that_the_front_end_has_passed(vhost_socket: Path) -> None:
    device = Chip()
    assert device.status == 0
    with vu.Backend(device, socket=vhost_socket):
        assert device.status == 0
        with FrontEnd.connect(str(vhost_socket)).start() as front:
            assert device.status == 0
            for byte in (0x1, 0x3, 0xB, 0xF, 0x8F):
                set_status(front, byte)
                assert device.status == byte
            assert front.is_refused(Request.SET_STATUS, wire.u64(0x100))
            assert device.status == 0x8F
            front.change(Request.RESET_DEVICE)
            assert device.status == 0
            front.start_ring()
            set_status(front, 0x8)
            front.stop_ring()
            assert device.calls == [
                ("start", 0),
                ("stop", 0),
                ("reset", 0),
                ("start", 0),
                ("stop", 0x8),
            ]
        with FrontEnd.connect(str(vhost_socket)).negotiate():
            assert device.calls[-1] == ("disconnect", 0)
            assert device.status == 0
    assert device.status == 0


def test_the_status_of_a_disk_that_rust_serves_is_there_too(vhost_socket: Path) -> None:
    disk = vu.NullDisk(size=512)
    with (
        vu.Backend(disk, socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).negotiate() as front,
    ):
        set_status(front, 0xB)
        assert disk.status == 0xB
