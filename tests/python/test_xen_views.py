"""What views show of the pages that a guest of Xen grants, and how long those stay mapped."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import vhost_user as vu
from vhost_user.testing import XenGuest

from .disks import SIZE, RamDisk

RING = [16]
"""The one page that stays mapped on demand."""

LARGE = 128 << 10
"""Bytes of the longest request that the driver makes."""

RAW = vu.XenOptions(raw_views=True)
LIMIT = 10.0


def is_shared(view: memoryview) -> bool:
    """Whether a writable view shows memory that others have mapped too."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            bounds, rights, *_ = line.split()
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if start <= address < end:
                return rights.endswith("s")
    raise AssertionError(f"nothing is mapped at {address:#x}")


class Looking(RamDisk):
    """Notes whose memory the views of its reads are."""

    def __init__(self) -> None:
        super().__init__()
        self.mem[:] = os.urandom(SIZE)
        self.shared: set[bool] = set()

    def read(self, offset: int, buf: memoryview, /) -> None:
        self.shared.add(is_shared(buf))
        super().read(offset, buf)


class LookingInBatches(Looking):
    """The same by the batch: at the whole, or at the pieces."""

    def __init__(self, *, pieces: bool = False) -> None:
        super().__init__()
        self.pieces = pieces

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            at = request.offset
            for view in request.segments if self.pieces else (request.data,):
                if request.op == "read":
                    self.shared.add(is_shared(view))
                    view[:] = self.mem[at : at + len(view)]
                else:
                    self.mem[at : at + len(view)] = view
                at += len(view)


@pytest.mark.parametrize("size", [4096, LARGE])
@pytest.mark.parametrize(
    "device", [Looking, LookingInBatches, lambda: LookingInBatches(pieces=True)]
)
@pytest.mark.parametrize("raw", [False, True], ids=["copies", "raw"])
@pytest.mark.parametrize("mapping", ["grant", "grant-on-demand"])
def test_views_show_granted_pages_on_request_alone(
    mapping: Any, raw: bool, device: Any, size: int
) -> None:
    served, guest = device(), XenGuest(mapping)
    options = vu.XenOptions(raw_views=raw)
    with vu.testing.blk(served, guest=guest, xen=options) as disk:
        assert disk.pread(size, 4096) == served.mem[4096 : 4096 + size]
        data = os.urandom(size)
        disk.pwrite(data, 8192)
        assert served.mem[8192 : 8192 + size] == data
    assert served.shared == {raw}


def test_foreign_memory_is_shown_as_it_is() -> None:
    served = Looking()
    with vu.testing.blk(served, guest=XenGuest("foreign")) as disk:
        assert disk.pread(4096, 0) == served.mem[:4096]
    assert served.shared == {True}


@pytest.mark.parametrize("raw", [False, True], ids=["copies", "raw"])
def test_a_sector_is_copied_in_either_case(raw: bool) -> None:
    served = Looking()
    options = vu.XenOptions(raw_views=raw, copy_below=0)
    with vu.testing.blk(served, guest=XenGuest(), xen=options) as disk:
        assert disk.pread(512, 0) == served.mem[:512]
    assert served.shared == {False}


class Keeping(Looking):
    """Keeps the view of each read of what is not at the disk's start."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[memoryview] = []
        self.some = threading.Event()

    def read(self, offset: int, buf: memoryview, /) -> None:
        super().read(offset, buf)
        if offset:
            self.kept.append(buf[:])
            self.some.set()


@pytest.mark.parametrize(("raw", "pages"), [(False, 0), (True, 1)], ids=["copies", "raw"])
def test_pages_that_a_kept_view_shows_stay_mapped_and_go_before_the_answer(
    raw: bool, pages: int
) -> None:
    served, guest = Keeping(), XenGuest()
    options = vu.XenOptions(raw_views=raw)
    with vu.testing.blk(served, guest=guest, xen=options, on_error="report") as disk:
        read: list[bytes] = []
        used: list[list[int]] = []

        def run() -> None:
            read.append(disk.pread(4096, 4096))
            used.append(guest.in_use())

        reading = threading.Thread(target=run)
        reading.start()
        assert served.some.wait(LIMIT)
        assert len(guest.in_use()) == len(RING) + pages
        view = served.kept.pop()
        view[:4] = b"late"
        view.release()
        reading.join(LIMIT)
        assert read == [b"late" + served.mem[4100:8192]]
        assert used == [RING]


@pytest.mark.parametrize("mapping", ["grant", "grant-on-demand"])
def test_a_raw_view_that_outlives_its_session_shows_memory_of_this_process(mapping: Any) -> None:
    """The guest has all its pages back at once, and what is written late reaches none of them."""
    served, guest = Keeping(), XenGuest(mapping)
    with vu.testing.blk(served, guest=guest, xen=RAW, on_error="report") as disk:
        ended: list[type] = []

        def run() -> None:
            try:
                disk.pread(4096, 4096)
            except OSError as error:
                ended.append(type(error))

        reading = threading.Thread(target=run)
        reading.start()
        assert served.some.wait(LIMIT)
        assert len(guest.in_use()) > len(RING)
        disk.backend.stop(drain=0.0)
        reading.join(LIMIT)
        assert ended == [ConnectionResetError]
        assert guest.in_use() == []
        view = served.kept.pop()
        assert bytes(view) == bytes(4096)
        view[:] = b"!" * 4096
        assert bytes(view) == b"!" * 4096
        view.release()


class KeepingWrites(RamDisk):
    """Keeps each write, and its data's view."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[vu.BlockRequest, memoryview]] = []
        self.some = threading.Event()

    def on_batch(self, batch: vu.BlockBatch, /) -> None:
        for request in batch:
            if request.op == "write":
                self.kept.append((request.defer(), request.data))
                self.some.set()


@pytest.mark.parametrize("raw", [False, True], ids=["copies", "raw"])
@pytest.mark.parametrize("mapping", ["foreign", "grant", "grant-on-demand"])
def test_the_view_of_a_write_that_outlives_its_session_shows_what_the_driver_wrote(
    mapping: Any, raw: bool
) -> None:
    """The guest has all its pages back, and no zeroes take the place of the data."""
    served, guest, data = KeepingWrites(), XenGuest(mapping), os.urandom(LARGE // 2)
    options = vu.XenOptions(raw_views=raw)
    with vu.testing.blk(served, guest=guest, xen=options, on_error="report") as disk:

        def run() -> None:
            with contextlib.suppress(OSError):
                disk.pwrite(data, 0)

        writing = threading.Thread(target=run)
        writing.start()
        assert served.some.wait(LIMIT)
        disk.backend.stop(drain=0.0)
        writing.join(LIMIT)
        assert guest.in_use() == []
        [(request, view)] = served.kept
        assert bytes(view) == data
        view.release()
        with pytest.raises(vu.StaleRequestError):
            request.copy_to(bytearray(len(data)))
        with pytest.raises(vu.StaleRequestError):
            request.complete()


def test_rust_moves_data_to_and_from_the_mapped_pages_without_a_view() -> None:
    class ByRust(RamDisk):
        def on_batch(self, batch: vu.BlockBatch, /) -> None:
            mapped.append(len(guest.in_use()) - len(RING))
            batch.copy_from(self.mem)
            batch.copy_to(self.mem)

    mapped: list[int] = []
    served, guest, data = ByRust(), XenGuest(), os.urandom(LARGE)
    with vu.testing.blk(served, guest=guest, xen=RAW) as disk:
        disk.pwrite(data, 0)
        assert disk.pread(LARGE, 0) == data
    assert mapped == [LARGE // 4096] * 2
