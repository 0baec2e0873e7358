"""Block devices in Python, driven by a real front-end."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu

from .disks import SIZE, BatchDisk, Calls, RamDisk

DATA = os.urandom(64 << 10)


@pytest.fixture(params=[RamDisk, BatchDisk])
def disk(request: pytest.FixtureRequest, vhost_blk: vu.testing.BlkFactory) -> vu.VirtioBlkDriver:
    return vhost_blk(request.param())


def test_what_was_written_is_read_back(disk: vu.VirtioBlkDriver) -> None:
    disk.pwrite(DATA, 4096)
    assert disk.pread(len(DATA), 4096) == DATA
    assert disk.pread(4096, 0) == bytes(4096)


def test_a_long_transfer_is_whole(disk: vu.VirtioBlkDriver) -> None:
    data = os.urandom(SIZE)
    disk.pwrite(data, 0)
    assert disk.pread(SIZE, 0) == data


def test_the_driver_sees_size_and_serial(disk: vu.VirtioBlkDriver) -> None:
    assert disk.size == SIZE
    assert disk.serial() == "ram-1"
    assert not disk.read_only


def test_a_read_only_disk_is_never_asked_to_change(vhost_blk: vu.testing.BlkFactory) -> None:
    disk = vhost_blk(RamDisk(read_only=True))
    assert disk.read_only
    with pytest.raises(vu.RequestError):
        disk.pwrite(bytes(512), 0)
    assert disk.backend.take_failure() is None


def test_each_request_kind_has_its_callback(vhost_blk: vu.testing.BlkFactory) -> None:
    device = Calls()
    disk = vhost_blk(device)
    disk.pwrite(b"x" * 8192, 4096)
    disk.flush()
    disk.discard(8192, 4096)
    disk.write_zeroes(4096, 512, unmap=True)
    assert disk.pread(1024, 4096) == bytes(512) + b"x" * 512
    disk.close()
    disk.backend.stop()
    start, *calls = device.calls
    assert start == ("start", device.negotiated_features)
    assert device.negotiated_features & 1 << 32, "VIRTIO_F_VERSION_1"
    assert calls == [
        ("flush",),
        ("discard", 8192, 4096),
        ("write_zeroes", 4096, 512, True),
        ("stop",),
        ("disconnect",),
    ]


def test_with_the_cache_off_each_write_is_flushed(vhost_blk: vu.testing.BlkFactory) -> None:
    device = Calls()
    disk = vhost_blk(device)
    disk.pwrite(bytes(512), 0)
    assert ("flush",) not in device.calls
    disk.set_writeback(False)
    device.calls.clear()
    disk.pwrite(bytes(512), 0)
    assert device.calls == [("flush",)]


def test_what_is_not_overridden_is_not_offered(vhost_blk: vu.testing.BlkFactory) -> None:
    disk = vhost_blk(RamDisk())
    for feature in (9, 13, 14):  # FLUSH, DISCARD, WRITE_ZEROES
        assert not disk.offered_features & 1 << feature


def test_the_view_of_a_write_is_read_only(vhost_blk: vu.testing.BlkFactory) -> None:
    class Scribbler(RamDisk):
        def write(self, offset: int, buf: memoryview, /) -> None:
            buf[0] = 1

    disk = vhost_blk(Scribbler())
    with pytest.raises(vu.RequestError) as caught:
        disk.pwrite(bytes(512), 0)
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_resized_disk_is_seen_by_the_driver(vhost_blk: vu.testing.BlkFactory) -> None:
    device = RamDisk()
    disk = vhost_blk(device)
    with pytest.raises(vu.RequestError):
        disk.pread(512, SIZE)
    device.mem = memoryview(bytearray(2 * SIZE))
    device.resize(2 * SIZE)
    assert disk.wait_config_change()
    assert (disk.size, device.size) == (2 * SIZE, 2 * SIZE)
    assert disk.pread(512, SIZE) == bytes(512)
    with pytest.raises(ValueError, match="512"):
        device.resize(1000)


def test_a_file_is_served_without_python(vhost_blk: vu.testing.BlkFactory, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(DATA)
    disk = vhost_blk(vu.FileDisk(image))
    assert disk.pread(len(DATA), 0) == DATA
    disk.pwrite(b"y" * 512, 512)
    disk.flush()
    assert image.read_bytes() == DATA[:512] + b"y" * 512 + DATA[1024:]


def test_a_file_that_is_no_disk_is_named() -> None:
    with pytest.raises(OSError, match="/proc/version"):
        vu.FileDisk("/proc/version", read_only=True)


@pytest.mark.parametrize("direct", [1, "yes", None])
def test_direct_is_true_or_false(direct: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="direct is True or False, not "):
        vu.FileDisk(tmp_path / "image", direct=direct)


def test_a_disk_that_rust_serves_takes_no_callbacks() -> None:
    with pytest.raises(TypeError, match=r"Mine\.read would never be called"):

        class Mine(vu.FileDisk):
            def read(self, offset: int, buf: memoryview, /) -> None:
                """Never."""

    for name in ("flush", "on_batch", "on_start", "on_stop", "on_reset", "on_disconnect"):
        for kind in (vu.FileDisk, vu.NullDisk):
            with pytest.raises(TypeError, match=rf"Mine\.{name} would never be called"):
                type("Mine", (kind,), {name: print})


def test_wrong_numbers_are_refused_with_the_right_ones() -> None:
    wrong: list[Callable[[], vu.Device]] = [
        lambda: vu.BlockDevice(size=511),
        lambda: vu.BlockDevice(size=-512),
        lambda: vu.BlockDevice(size=512, block_size=1000),
        lambda: vu.NullDisk(size=1),
    ]
    for make in wrong:
        with pytest.raises(ValueError, match="not"):
            make()
    with pytest.raises(ValueError, match="20 bytes"):
        vu.BlockDevice(size=512, serial="x" * 21)
    with pytest.raises(ValueError, match="num_queues"):
        vu.BlockDevice(size=512, num_queues=0)
    with pytest.raises(TypeError, match=r"whole number of bytes, not 512\.0"):
        vu.BlockDevice(size=512.0)  # type: ignore[arg-type]


def test_a_disk_without_what_it_cannot_do_without_is_refused() -> None:
    class ReadOnly(vu.BlockDevice):
        def read(self, offset: int, buf: memoryview, /) -> None:
            """Leaves zeroes."""

    with pytest.raises(TypeError, match="BlockDevice has no read, nor on_batch"):
        vu.Backend(vu.BlockDevice(size=512), socket="x")
    with pytest.raises(TypeError, match="ReadOnly has no write: add it, or say read_only=True"):
        vu.Backend(ReadOnly(size=512), socket="x")
    vu.Backend(ReadOnly(size=512, read_only=True), socket="x")


# Batches.


def test_a_batch_is_a_sequence_in_the_driver_s_order(vhost_blk: vu.testing.BlkFactory) -> None:
    seen: list[tuple[str, int, int, int]] = []

    class Noting(BatchDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            assert len(batch) == len(list(batch))
            seen.extend((r.op, r.offset, r.length, r.queue) for r in batch)
            super().on_batch(batch)

    disk = vhost_blk(Noting())
    disk.pwrite(bytes(1024), 512)
    disk.pread(512, 0)
    assert seen == [("write", 512, 1024, 0), ("read", 0, 512, 0)]


def test_an_exception_fails_what_the_batch_had_not_answered(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    class Failing(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            raise LookupError("not here")

    disk = vhost_blk(Failing())
    with pytest.raises(vu.RequestError) as caught:
        disk.pread(512, 0)
    assert caught.value.errno == errno.EIO
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_request_is_failed_with_an_errno(vhost_blk: vu.testing.BlkFactory) -> None:
    class Failing(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                request.fail(errno.EOPNOTSUPP if request.op == "write" else errno.ENOSPC)

    disk = vhost_blk(Failing())
    with pytest.raises(vu.RequestError) as read:
        disk.pread(512, 0)
    with pytest.raises(vu.RequestError) as write:
        disk.pwrite(bytes(512), 0)
    assert (read.value.errno, write.value.errno) == (errno.EIO, errno.EOPNOTSUPP)


@pytest.mark.parametrize("length", [512, 1 << 17])
def test_files_move_to_and_from_requests(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path, length: int
) -> None:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, SIZE)

    class Now(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                move = request.preadv if request.op == "read" else request.pwritev
                assert move(fd) == request.length

    class Later(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                request.submit(fd, request.offset)

    for device in (Now(), Later()):
        disk = vhost_blk(device)
        data = os.urandom(length)
        disk.pwrite(data, 4096)
        assert disk.pread(length, 4096) == data
        assert os.pread(fd, length, 4096) == data
        disk.close()
    os.close(fd)


def test_a_submitted_transfer_answers_by_how_it_went(
    vhost_blk: vu.testing.BlkFactory, tmp_path: Path
) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"z" * 600)
    fd = os.open(path, os.O_RDONLY)

    class Submitting(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                request.submit(fd)

    disk = vhost_blk(Submitting())
    assert disk.pread(1024, 0) == b"z" * 600 + bytes(424)
    with pytest.raises(vu.RequestError):
        disk.pwrite(bytes(512), 0)
    os.close(fd)


def test_data_in_pieces_is_seen_whole_and_as_it_lies(vhost_blk: vu.testing.BlkFactory) -> None:
    class Views(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                where = slice(request.offset, request.offset + request.length)
                pieces = request.segments
                assert sum(map(len, pieces)) == len(request.data) == request.length
                assert all(p.readonly == (request.op == "write") for p in pieces)
                if request.op == "write":
                    assert b"".join(pieces) == request.data
                    self.mem[where] = request.data
                else:
                    request.data[:] = self.mem[where]
                del pieces

    disk = vhost_blk(Views())
    disk.pwrite(DATA, 0)
    assert disk.pread(len(DATA), 0) == DATA


def test_moving_data_checks_direction_and_room(vhost_blk: vu.testing.BlkFactory) -> None:
    errors: list[type[BaseException]] = []

    class Wrong(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            (request,) = batch
            attempts: list[Callable[[], object]] = [
                lambda: request.copy_to(bytearray(512)),
                lambda: request.copy_from(bytes(513)),
                lambda: request.copy_from("text"),  # type: ignore[arg-type]
                lambda: request.copy_from(memoryview(bytes(1024))[::2]),
                lambda: request.preadv(-1),
                lambda: request.pwritev(0),
                lambda: request.preadv(0, -1),
                lambda: request.preadv(0, 1 << 64),
            ]
            for attempt in attempts:
                with pytest.raises((TypeError, ValueError, BufferError)) as caught:
                    attempt()
                errors.append(caught.type)
            request.fill(7)

    assert vhost_blk(Wrong()).pread(512, 0) == b"\x07" * 512
    assert errors == [
        *(TypeError, ValueError, TypeError, BufferError),
        *(ValueError, TypeError, ValueError, ValueError),
    ]


def test_with_the_cache_off_a_batch_with_writes_is_flushed_once(
    vhost_socket: Path,
) -> None:
    durable: list[tuple[str, bool]] = []

    class Noting(Calls):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            durable.extend((request.op, request.durable) for request in batch)

    device = Noting()
    with vu.Backend(device, socket=vhost_socket), vu.VirtioBlkDriver(vhost_socket) as disk:
        disk.pwrite(bytes(512), 0)
        assert ("flush",) not in device.calls
        disk.set_writeback(False)
        device.calls.clear()
        disk.pread(512, 0)
        assert device.calls == []
        disk.pwrite(bytes(512), 0)
        assert device.calls == [("flush",)]
    assert durable == [("write", False), ("read", True), ("write", True)]


def test_a_write_is_durable_where_no_flush_is_offered(vhost_blk: vu.testing.BlkFactory) -> None:
    durable: list[bool] = []

    class Noting(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            durable.extend(request.durable for request in batch)

    vhost_blk(Noting()).pwrite(bytes(512), 0)
    assert durable == [True]


def test_the_driver_for_disks_refuses_other_devices_by_name(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    with pytest.raises(TypeError, match=r"vhost_blk drives disks; Rng has device_id 4: call its"):
        vhost_blk(vu.Rng())


def test_a_disk_made_without_its_keyword_is_refused_by_a_public_name() -> None:
    for kind in (vu.NullDisk, vu.BlockDevice):
        with pytest.raises(TypeError, match=r"^Disk\.__init__\(\) takes 1 positional argument"):
            kind(1 << 20)  # type: ignore[call-arg]
