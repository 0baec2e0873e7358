"""Disks whose logical blocks are longer than a sector."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.blk import SECTOR, Status, segment_range
from peer.front_end import FrontEnd
from peer.numbers import Request

from .conftest import Bench

BLOCK = 4096
SIZE = 1 << 20
BLK_SIZE = 1 << 6


def told_blocks(front: FrontEnd) -> tuple[int, int, int]:
    """blk_size, physical_block_exp and alignment_offset."""
    answer = front.channel.ask(Request.GET_CONFIG, wire.config(20, 6, bytes(6)))
    size, exponent, offset = struct.unpack("<IBB", answer[12:])
    return size, exponent, offset


class Blocks(vu.BlockDevice):
    """A disk that counts in its blocks, and writes down which it was asked for."""

    def __init__(self) -> None:
        super().__init__(size=SIZE, block_size=BLOCK)
        self.asked: list[tuple[str, int, int]] = []

    def read(self, offset: int, buf: memoryview, /) -> None:
        self.asked.append(("read", offset // BLOCK, len(buf) // BLOCK))
        buf[:] = bytes(len(buf))

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.asked.append(("write", offset // BLOCK, len(buf) // BLOCK))

    def discard(self, offset: int, length: int, /) -> None:
        self.asked.append(("discard", offset // BLOCK, length // BLOCK))


class BatchedBlocks(Blocks):
    """The same, a batch at a time."""

    def on_batch(self, batch: vu.BlockBatch, /) -> None:
        for request in batch:
            if request.op != "flush":
                self.asked.append((request.op, request.offset // BLOCK, request.length // BLOCK))
            request.complete()


@pytest.mark.parametrize("kind", [Blocks, BatchedBlocks])
def test_a_class_that_says_its_block_size_gets_whole_blocks_alone(
    bench: Bench, kind: type[Blocks]
) -> None:
    device = kind()
    bench.serve(device)
    with bench.connect().start() as front:
        disk = front.blk()
        assert told_blocks(front) == (BLOCK, 0, 0)
        for sector, length in ((1, SECTOR), (0, SECTOR), (7, BLOCK), (8, BLOCK + SECTOR)):
            assert disk.read(sector, length).status == Status.IOERR
            assert disk.write(sector, bytes(length)).status == Status.IOERR
            part = segment_range(sector, length // SECTOR)
            assert disk.discard(part).status == Status.IOERR
        assert device.asked == []
        assert disk.read(8, 2 * BLOCK).status == Status.OK
        assert disk.write(16, bytes(BLOCK)).status == Status.OK
        assert disk.discard(segment_range(24, 8)).status == Status.OK
    assert device.asked == [("read", 1, 2), ("write", 2, 1), ("discard", 3, 1)]


def test_a_driver_that_does_not_take_the_block_size_gets_no_part_of_one_either(
    bench: Bench,
) -> None:
    device = Blocks()
    bench.serve(device)
    with bench.connect().start(never=BLK_SIZE) as front:
        assert front.blk().read(1, SECTOR).status == Status.IOERR
        assert front.blk().read(0, BLOCK).status == Status.OK
    assert device.asked == [("read", 0, 1)]


def test_a_file_in_long_blocks_serves_every_sector(bench: Bench, tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = bytearray(random.Random(1).randbytes(SIZE))
    image.write_bytes(content)
    disk = vu.FileDisk(image, block_size=BLOCK)
    assert (disk.block_size, vu.FileDisk(image).block_size) == (BLOCK, SECTOR)
    bench.serve(disk)
    with bench.connect().start() as front:
        assert told_blocks(front) == (BLOCK, 0, 0)
        data = random.Random(2).randbytes(SECTOR)
        assert front.blk().write(3, data).status == Status.OK
        content[3 * SECTOR : 4 * SECTOR] = data
        assert front.blk().read(2, 2 * SECTOR).data == content[2 * SECTOR : 4 * SECTOR]
    assert image.read_bytes() == content


@pytest.mark.parametrize("served", ["null", "file"])
def test_every_disk_tells_the_block_size_that_it_was_given(
    bench: Bench, tmp_path: Path, served: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    null = vu.NullDisk(size=SIZE, block_size=2048)
    bench.serve(null if served == "null" else vu.FileDisk(image, block_size=2048))
    with bench.connect().start() as front:
        assert told_blocks(front)[0] == 2048


@pytest.mark.parametrize("wrong", [0, 256, 1000, 1 << 17, -512])
def test_a_block_size_that_cannot_be_is_a_value_error(tmp_path: Path, wrong: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    text = f"block_size is a power of two from 512 to 65536, not {wrong}"
    with pytest.raises(ValueError, match=text):
        vu.NullDisk(size=SIZE, block_size=wrong)
    with pytest.raises(ValueError, match=text):
        vu.FileDisk(image, block_size=wrong)


def test_a_block_size_that_is_no_number_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="block_size is a number of bytes, as 4096, not '4k'"):
        vu.NullDisk(size=SIZE, block_size="4k")  # type: ignore[arg-type]


def test_a_disk_ends_with_a_block(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size is a multiple of block_size, 4096 bytes, not 4608"):
        vu.NullDisk(size=BLOCK + SECTOR, block_size=BLOCK)
    image = tmp_path / "image"
    image.write_bytes(bytes(BLOCK + SECTOR))
    with pytest.raises(ValueError, match="4608 bytes is no multiple of block_size, 4096"):
        vu.FileDisk(image, block_size=BLOCK)
    image.write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="1000 bytes is no multiple of block_size, 512"):
        vu.FileDisk(image)
    device = Blocks()
    bench.serve(device)
    with pytest.raises(ValueError, match="size is a multiple of block_size"):
        device.resize(BLOCK + SECTOR)
    device.resize(2 * BLOCK)
    assert device.size == 2 * BLOCK


# Block devices of the host.


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A block device with logical blocks of 4096 bytes; it goes with its last user."""
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("needs root and losetup")
    image = tmp_path / "image"
    image.write_bytes(random.Random(3).randbytes(SIZE))
    words = ["losetup", "--sector-size", str(BLOCK), "--find", "--show", str(image)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    path = made.stdout.strip()
    hold = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    subprocess.run(["losetup", "--detach", path], check=True)
    yield Path(path)
    os.close(hold)


@pytest.mark.parametrize("direct", [False, True])
def test_the_blocks_of_a_host_device_are_passed_on_and_every_sector_is_served(
    bench: Bench, loop: Path, tmp_path: Path, direct: bool
) -> None:
    content = bytearray((tmp_path / "image").read_bytes())
    device = vu.FileDisk(loop, direct=direct)
    assert device.block_size == BLOCK
    bench.serve(device)
    with bench.connect().start() as front:
        disk = front.blk()
        assert told_blocks(front) == (BLOCK, 0, 0)
        for sector, length in ((8, BLOCK), (1, SECTOR), (15, 3 * SECTOR)):
            data = random.Random(sector).randbytes(length)
            assert disk.write(sector, data).status == Status.OK
            content[sector * SECTOR : sector * SECTOR + length] = data
        assert disk.read(0, 32 * SECTOR).data == content[: 32 * SECTOR]
        assert disk.read(17, SECTOR).data == content[17 * SECTOR : 18 * SECTOR]
        assert disk.write_zeroes(segment_range(1, 1)).status == Status.OK
        content[SECTOR : 2 * SECTOR] = bytes(SECTOR)
        assert disk.discard(segment_range(25, 3)).status == Status.OK
        assert disk.read(0, SIZE).data == content
        assert disk.flush().status == Status.OK
    assert (tmp_path / "image").read_bytes() == content


def test_a_block_size_that_is_asked_for_goes_before_the_hosts(bench: Bench, loop: Path) -> None:
    bench.serve(vu.FileDisk(loop, block_size=SECTOR))
    with bench.connect().start() as front:
        assert told_blocks(front) == (SECTOR, 3, 0)
        assert front.blk().write(1, b"x" * SECTOR).status == Status.OK
        assert front.blk().discard(segment_range(1, 1)).status == Status.OK
        assert front.blk().read(1, SECTOR).data == b"x" * SECTOR
