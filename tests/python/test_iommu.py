"""Devices in Python behind an IOMMU: `VirtioBlkDriver(iommu=True)` maps the data of each request
for it alone, and the same addresses lead elsewhere afterwards."""

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import vhost_user as vu

from .disks import SIZE, BatchDisk, RamDisk

REQUESTS = 400
"""A hundred rounds through the places of a queue with 4 slots: of 5 places in turn each has been in
front of the memory of each slot many times."""

ACCESS_PLATFORM = 1 << 33


class Deferring(RamDisk):
    """Answers from another thread, the last request first."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[vu.BlockRequest] = []
        self._some = threading.Condition()
        threading.Thread(target=self._answer, daemon=True).start()

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        with self._some:
            self._kept += [request.defer() for request in batch]
            self._some.notify()

    def _answer(self) -> None:
        while True:
            with self._some:
                self._some.wait_for(lambda: self._kept)
                kept, self._kept = self._kept, []
            for request in reversed(kept):
                where = slice(request.offset, request.offset + request.length)
                if request.op == "read":
                    request.data[:] = self.mem[where]
                else:
                    self.mem[where] = request.data
                request.complete()


DISKS: dict[str, Callable[[Path], vu.Device]] = {
    "a call a request": lambda _: RamDisk(),
    "a call a batch": lambda _: BatchDisk(),
    "deferred": lambda _: Deferring(),
    "a file": lambda image: vu.FileDisk(image),
    "direct I/O": lambda image: vu.FileDisk(image, direct=True),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("make", DISKS.values(), ids=DISKS)
def test_every_byte_is_right_while_the_mapping_changes_under_the_device(
    vhost_blk: vu.testing.BlkFactory, image: Path, make: Callable[[Path], vu.Device], packed: bool
) -> None:
    """Writes and reads of all lengths; the long ones take several requests at once."""
    disk = vhost_blk(make(image), iommu=True, queue_size=4, packed=packed, timeout=60)
    assert disk.features & ACCESS_PLATFORM
    chance, expected = random.Random(7), bytearray(SIZE)
    for _ in range(REQUESTS):
        length = 512 * chance.choice([1, 7, 8, 9, 64, 1000])
        offset = 512 * chance.randrange((SIZE - length) // 512 + 1)
        if chance.random() < 0.5:
            data = chance.randbytes(length)
            disk.pwrite(data, offset)
            expected[offset : offset + length] = data
        else:
            assert disk.pread(length, offset) == expected[offset : offset + length]
    assert disk.pread(SIZE, 0) == expected
    counts = disk.iommu_counts
    assert counts is not None
    asked, told, taken = counts
    assert asked > REQUESTS / 4
    assert told > REQUESTS / 4
    assert taken >= REQUESTS


def test_without_an_iommu_nothing_is_translated(vhost_blk: vu.testing.BlkFactory) -> None:
    disk = vhost_blk(RamDisk())
    assert not disk.features & ACCESS_PLATFORM
    assert disk.iommu_counts is None


def test_a_view_that_is_kept_keeps_the_mapping(vhost_blk: vu.testing.BlkFactory) -> None:
    """The driver unmaps nothing before it has the request back."""
    kept: list[memoryview] = []

    class Keeping(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            super().read(offset, buf)
            kept.append(buf[:4])

        def flush(self) -> None:
            kept.clear()

    disk = vhost_blk(Keeping(), iommu=True, queue_size=4, timeout=60)
    disk.pwrite(b"x" * 512, 0)
    reading = threading.Thread(target=lambda: disk.pread(512, 0))
    reading.start()
    while not kept:
        reading.join(0.01)
        assert reading.is_alive(), "it was answered though a view is there"
    assert kept[0].tobytes() == b"xxxx"
    kept.clear()
    reading.join(20)
    assert not reading.is_alive()


def test_queues_stop_and_start_and_a_new_back_end_is_asked_anew(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    disk = vhost_blk(RamDisk(), iommu=True, queue_size=4, timeout=60)
    for number in range(20):
        data = bytes([number]) * 4096
        disk.pwrite(data, 4096 * number)
        disk.stop_queues()
        disk.start_queues()
        assert disk.pread(4096, 4096 * number) == data
    disk.reconnect()
    assert disk.pread(4096, 4096 * 7) == bytes([7]) * 4096


def test_a_load_runs_on_memory_that_is_mapped_as_a_whole(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    disk = vhost_blk(BatchDisk(), iommu=True, timeout=60)
    disk.prepare_load()
    report = disk.run_load("randread", ops=2000, verify="all")
    assert (report.errors, report.mismatches) == (0, 0)
    assert report.verified >= 2000
    counts = disk.iommu_counts
    assert disk.run_load("randwrite", ops=2000).errors == 0
    assert disk.run_load("read", ops=2000, verify="all").mismatches == 0
    # And by single mappings again.
    disk.pwrite(b"y" * 8192, 512)
    assert disk.pread(8192, 512) == b"y" * 8192
    assert counts != disk.iommu_counts


def test_dirty_pages_are_the_guest_s_and_not_the_device_s(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    """Of the read the page with its data is noted, by where it lies in guest memory."""
    data = random.Random(3).randbytes(4096)
    disk = vhost_blk(RamDisk(), iommu=True, queue_size=4, timeout=60)
    disk.pwrite(data, 0)
    disk.start_dirty_log()
    assert disk.pread(4096, 0) == data
    disk.stop_queues()
    pages = disk.dirty_pages()
    assert data in [disk.guest_memory(4096 * page, 4096) for page in pages]


def test_a_guest_of_xen_has_no_iommu() -> None:
    with (
        pytest.raises(ValueError, match="a guest of Xen has no IOMMU: leave out one of them"),
        vu.testing.blk(RamDisk(), guest=vu.testing.XenGuest("foreign"), iommu=True),
    ):
        pass
