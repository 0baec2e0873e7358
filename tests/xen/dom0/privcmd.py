"""Foreign mappings: another domain's memory by its frame numbers."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from .ioctl import PAGE, address, call, number

MMAPBATCH_V2 = number("P", 4, 32)
RESTRICT = number("P", 6, 2)
MMAP_RESOURCE = number("P", 7, 32)

BATCH = struct.Struct("<IH2xQQQ")  # pages, domain, address, frames, errors
RESOURCE = struct.Struct("<H2xIIIQQ")  # domain, type, id, first, pages, address
GRANT_TABLE = 1


class Batch(NamedTuple):
    """What came of one call: the area, the call's own error number, and one for each page."""

    area: mmap.mmap
    error: int
    pages: list[int]


def map_batch(fd: int, domain: int, frames: Sequence[int]) -> Batch:
    """Map ``frames`` of ``domain`` by one call, whatever fails. Errors are positive numbers."""
    area = mmap.mmap(fd, max(len(frames), 1) * PAGE)
    wanted = (ctypes.c_uint64 * len(frames))(*frames)
    errors = (ctypes.c_int32 * len(frames))()
    addresses = (address(area), ctypes.addressof(wanted), ctypes.addressof(errors))
    error = 0
    try:
        call(fd, MMAPBATCH_V2, bytearray(BATCH.pack(len(frames), domain, *addresses)))
    except OSError as failure:
        error = failure.errno or errno.EIO
    return Batch(area, error, [-page for page in errors])


def map_frames(fd: int, domain: int, frames: Sequence[int]) -> mmap.mmap:
    """Map ``frames`` of ``domain``; ``OSError`` when any of them fails."""
    area, error, pages = map_batch(fd, domain, frames)
    for failed in (error, *pages):
        if failed:
            area.close()
            raise OSError(failed, f"foreign mapping of domain {domain}: {os.strerror(failed)}")
    return area


def map_grant_table(fd: int, domain: int, pages: int) -> mmap.mmap:
    """The grant table of ``domain`` itself, which only its toolstack may map."""
    area = mmap.mmap(fd, pages * PAGE)
    resource = RESOURCE.pack(domain, GRANT_TABLE, 0, 0, pages, address(area))
    call(fd, MMAP_RESOURCE, bytearray(resource))
    return area


def restrict(fd: int, domain: int) -> None:
    """Limit an open ``privcmd`` to one domain, for good."""
    call(fd, RESTRICT, bytearray(struct.pack("<H", domain)))
