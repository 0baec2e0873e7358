"""Disks whose data goes past the host's page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import SECTOR, BlkDriver, Request, Status, Type

from .conftest import Bench

BLOCK = 4096
SIZE = 1 << 20
LENGTH = 64 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    with opened(path) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture
def disk(bench: Bench, image: Path) -> Iterator[BlkDriver]:
    bench.serve(vu.FileDisk(image, direct=True))
    with bench.connect().start() as front:
        yield front.blk()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def is_cached(path: Path, offset: int) -> bool:
    """Whether the page cache has this block. Asking does not bring it there."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), BLOCK, offset=offset) as area:
        first = ctypes.c_char.from_buffer(area)
        resident = ctypes.c_ubyte()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.byref(first), ctypes.c_size_t(BLOCK), ctypes.byref(resident))
        del first
        assert not failed, os.strerror(ctypes.get_errno())
        return bool(resident.value & 1)


def request(disk: BlkDriver, kind: Type, sector: int, data: bytes, shift: int) -> Request:
    """A request whose data lies ``shift`` bytes into a page."""
    made = disk.prepare(kind, sector)
    at = disk.memory.allocate(len(data) + BLOCK, BLOCK) + shift
    disk.memory.write(at, data)
    return made._replace(data=at, length=len(data), writable=kind == Type.IN)


def test_the_page_cache_is_what_tells_direct_from_other_reads(image: Path) -> None:
    assert not is_cached(image, 0)
    with opened(image) as fd:
        os.pread(fd, BLOCK, 0)
    assert is_cached(image, 0)


@pytest.mark.parametrize("shift", [0, 8, SECTOR + 1], ids=["aligned", "word", "odd"])
def test_whole_blocks_go_past_the_page_cache_wherever_the_driver_has_them(
    disk: BlkDriver, image: Path, shift: int
) -> None:
    data = random.Random(4).randbytes(LENGTH)
    written = disk.run(request(disk, Type.OUT, 8, data, shift))
    assert written.status == Status.OK
    assert not is_cached(image, BLOCK)
    read = disk.run(request(disk, Type.IN, 8, bytes(LENGTH), shift))
    assert (read.status, read.data) == (Status.OK, data)
    assert not is_cached(image, BLOCK)
    assert image.read_bytes()[BLOCK : BLOCK + LENGTH] == data


def test_more_than_fits_our_own_memory_is_moved_whole(disk: BlkDriver, image: Path) -> None:
    data = random.Random(5).randbytes(SIZE - BLOCK)
    assert disk.run(request(disk, Type.OUT, 0, data, 1)).status == Status.OK
    read = disk.run(request(disk, Type.IN, 0, bytes(len(data)), 1))
    assert (read.status, read.data) == (Status.OK, data)
    assert image.read_bytes()[: len(data)] == data


@pytest.mark.parametrize("length", [SECTOR, 3 * SECTOR, BLOCK + SECTOR])
def test_parts_of_blocks_are_read_and_written_as_well(
    disk: BlkDriver, image: Path, length: int
) -> None:
    content = bytearray(image.read_bytes())
    data = random.Random(6).randbytes(length)
    assert disk.write(3, data).status == Status.OK
    content[3 * SECTOR : 3 * SECTOR + length] = data
    # What is read past the cache has what was written through it.
    assert disk.read(0, 16 * SECTOR).data == content[: 16 * SECTOR]
    assert disk.flush().status == Status.OK
    assert image.read_bytes() == content


def test_without_a_flush_feature_direct_writes_are_durable_and_right(
    bench: Bench, image: Path
) -> None:
    bench.serve(vu.FileDisk(image, direct=True))
    with bench.connect().start(never=1 << 9) as front:
        for shift in (0, 1):
            data = random.Random(shift).randbytes(LENGTH)
            assert front.blk().run(request(front.blk(), Type.OUT, 0, data, shift)).status == 0
            assert image.read_bytes()[:LENGTH] == data


def test_a_file_system_without_direct_io_is_refused_with_what_to_do(bench: Bench) -> None:
    disk = vu.FileDisk("/sys/kernel/mm/transparent_hugepage/enabled", read_only=True, direct=True)
    with pytest.raises(OSError, match="no direct I/O: open it without"):
        bench.serve(disk)


class Opened(vu.BlockDevice):
    """Has requests moved to and from a file that it has opened for direct I/O."""

    def __init__(self, path: Path) -> None:
        super().__init__(size=SIZE)
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            if request.op == "read":
                request.preadv(self.fd)
            else:
                request.pwritev(self.fd)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "odd"])
def test_a_request_is_moved_to_a_file_of_ones_own_past_the_page_cache(
    bench: Bench, image: Path, shift: int
) -> None:
    device = Opened(image)
    bench.serve(device)
    data = random.Random(7).randbytes(LENGTH)
    with bench.connect().start() as front:
        disk = front.blk()
        assert disk.run(request(disk, Type.OUT, 8, data, shift)).status == Status.OK
        read = disk.run(request(disk, Type.IN, 8, bytes(LENGTH), shift))
        assert (read.status, read.data) == (Status.OK, data)
    os.close(device.fd)
    assert not is_cached(image, BLOCK)
    assert image.read_bytes()[BLOCK : BLOCK + LENGTH] == data
