"""What a back-end tells of its queues in numbers."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import SECTOR, Status, Type, segment_range
from peer.front_end import FrontEnd
from peer.process import eventually
from peer.ring import Segment
from vhost_user.testing import XenGuest

from .disks import BatchDisk, Calls, RamDisk


def sums(backend: vu.Backend, queue: int = 0) -> tuple[int, int, int]:
    """Requests, bytes and errors of a queue."""
    stats = backend.stats()[queue]
    return stats.requests, stats.bytes, stats.errors


def test_each_queue_counts_its_own_requests_and_bytes(socket_path: Path) -> None:
    with vu.Backend(RamDisk(num_queues=3), socket=socket_path) as backend:
        assert backend.stats() == (vu.QueueStats(0, 0, 0, 0, 0, 0),) * 3
        with FrontEnd.connect(str(socket_path)).start(queues=3) as front:
            assert front.blk(0).write(1, bytes(3 * SECTOR)).status == Status.OK
            assert front.blk(0).read(1, SECTOR).status == Status.OK
            assert front.blk(2).read(0, 8 * SECTOR).status == Status.OK
            assert sums(backend, 0) == (2, 4 * SECTOR, 0)
            assert sums(backend, 1) == (0, 0, 0)
            assert sums(backend, 2) == (1, 8 * SECTOR, 0)


@pytest.mark.parametrize("kind", ["python", "batch", "file", "null"])
def test_all_disks_count_alike(socket_path: Path, tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    disks: dict[str, Callable[[], vu.Device]] = {
        "python": RamDisk,
        "batch": BatchDisk,
        "file": lambda: vu.FileDisk(image),
        "null": lambda: vu.NullDisk(size=1 << 20),
    }
    with (
        vu.Backend(disks[kind](), socket=socket_path) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        disk = front.blk()
        assert disk.write(1, bytes(3 * SECTOR)).status == Status.OK
        assert sums(backend) == (1, 3 * SECTOR, 0)
        assert disk.read(1, SECTOR).status == Status.OK
        # A null disk writes no byte to the driver's memory.
        moved = 3 * SECTOR if kind == "null" else 4 * SECTOR
        assert sums(backend) == (2, moved, 0)
        # Refused by the core: past the end, not even a sector, a type that nobody knows.
        assert disk.read(1 << 20, SECTOR).status == Status.IOERR
        assert disk.run(disk.prepare(Type.IN, 0, room=7)).status == Status.IOERR
        assert disk.run(disk.prepare(99, 0)).status == Status.UNSUPP
        assert sums(backend) == (5, moved, 3)


class Failing(RamDisk):
    """Reads fail in one way or another, by their place."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        raise {0: OSError(5, "worn out"), 1: NotImplementedError(), 2: KeyError()}[offset // SECTOR]


class FailingBatches(RamDisk):
    """The same in batches: answered, dropped, raised."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            match request.offset // SECTOR:
                case 0:
                    request.fail()
                case 1:
                    request.defer()
                case _:
                    raise KeyError


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", [Failing, FailingBatches])
def test_what_the_device_fails_or_drops_is_an_error(socket_path: Path, kind: type[RamDisk]) -> None:
    with (
        vu.Backend(kind(), socket=socket_path) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        for sector in range(3):
            assert front.blk().read(sector, SECTOR).status != Status.OK
        assert sums(backend) == (3, 0, 3)


def test_requests_without_data_move_no_bytes_but_their_ranges(socket_path: Path) -> None:
    with (
        vu.Backend(Calls(), socket=socket_path) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        assert front.blk().flush().status == Status.OK
        assert sums(backend) == (1, 0, 0)
        assert front.blk().discard(segment_range(0, 8)).status == Status.OK
        assert sums(backend) == (2, 16, 0)


class Half(vu.Device):
    """Fills a half of each buffer, and forgets those of 2 bytes."""

    device_id = 4

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            if len(request.writable) > 2:
                request.complete(len(request.writable) // 2)


def test_other_devices_count_what_was_written_and_what_was_left_unanswered(
    socket_path: Path,
) -> None:
    with (
        vu.Backend(Half(), socket=socket_path) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        ring = front.rings[0]
        for length in (100, 2):
            ring.add([Segment(front.memory.allocate(length), length, True)])
            ring.kick()
            ring.wait(1)
        assert sums(backend) == (2, 50, 1)


class Keeping(RamDisk):
    """Keeps its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[vu.BlockRequest] = []

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        self.kept += [request.defer() for request in batch]


def test_what_is_in_flight_is_told_and_late_requests_are_errors(socket_path: Path) -> None:
    device = Keeping()
    with (
        vu.Backend(device, socket=socket_path, drain=0.1) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        disk = front.blk()
        for _ in range(3):
            disk.submit(disk.prepare(Type.IN, 0, room=SECTOR))
        front.rings[0].kick()
        assert eventually(lambda: len(device.kept) == 3)
        assert backend.stats()[0].in_flight == 3
        device.kept.pop().complete()
        front.rings[0].wait(1)
        assert eventually(lambda: sums(backend) == (1, SECTOR, 0))
        front.stop_ring()
        assert backend.stats()[0].in_flight == 0
        assert sums(backend) == (3, SECTOR, 2)


def has_told(backend: vu.Backend, count: int) -> bool:
    """Whether it has counted so many kicks and calls, and never more."""
    told = backend.stats()[0]
    assert max(told.kicks, told.calls) <= count
    return (told.kicks, told.calls) == (count, count)


def test_kicks_and_calls_are_those_that_were_sent(socket_path: Path) -> None:
    with (
        vu.Backend(RamDisk(), socket=socket_path) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        # Neither the start of a ring nor its pause is a kick.
        front.enable(on=0)
        front.enable()
        for count in range(1, 4):
            assert front.blk().read(0, SECTOR).status == Status.OK
            assert eventually(partial(has_told, backend, count))


def test_the_numbers_outlive_front_ends_and_the_back_end(socket_path: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=socket_path)
    with pytest.raises(vu.VhostUserError, match="has not started"):
        backend.stats()
    with backend:
        for count in (1, 2):
            with FrontEnd.connect(str(socket_path)).start() as front:
                assert front.blk().read(0, SECTOR).status == Status.OK
                assert sums(backend) == (count, count * SECTOR, 0)
    assert sums(backend) == (2, 2 * SECTOR, 0)


@pytest.mark.parametrize("copy_below", [0, None])
def test_what_a_xen_guest_grants_for_a_request_is_counted_alike(
    socket_path: Path, copy_below: int | None
) -> None:
    guest = XenGuest("grant-on-demand")
    with (
        vu.Backend(
            RamDisk(), socket=socket_path, xen=guest.options(vu.XenOptions(copy_below=copy_below))
        ) as back,
        vu.VirtioBlkDriver.connect(socket_path, guest=guest) as driver,
    ):
        driver.pwrite(bytes(3 * SECTOR), 0)
        assert sums(back) == (1, 3 * SECTOR, 0)
        driver.pread(SECTOR, 0)
        assert sums(back) == (2, 4 * SECTOR, 0)
