"""An empty guest: memory and a grant table, but no kernel, no processor that ever runs, no name.

What a driver in the guest would write, the tests write from dom0. The hypervisor cannot tell the
difference: the memory is another domain's, and so are the grants.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from mmap import mmap
from typing import Self

from .grants import GrantTable
from .ioctl import PAGE, device
from .privcmd import map_frames, map_grant_table

CREATE = struct.Struct("<I16sIIIIiiIII")
"""``xen_domctl_createdomain`` of Xen 4.17 up to ``arch``: ssid, handle, flags, IOMMU options,
processors, event channels, grant frames, maptrack frames, grant options, trace size, pool."""

HARDWARE_ASSISTED = 1 << 0 | 1 << 1  # hvm, hap
EVENT_CHANNELS, MAPTRACK_FRAMES, GRANT_VERSION = 1023, 64, 1
PAGING_BYTES = 8 << 20
SPARE_KIB = 4096

GRANT_FRAMES = 4
FRAMES = tuple(range(0x100, 0x900)) + tuple(range(0x10_0000, 0x10_0010))
"""8 MiB from 1 MiB on, and 16 pages behind 4 GiB."""


class Guest:
    """A domain with memory at ``frames``, destroyed on ``close``."""

    def __init__(self, frames: Sequence[int] = FRAMES) -> None:
        self.frames = tuple(frames)
        self._xc = ctypes.CDLL("libxenctrl.so.4.17", use_errno=True)
        self._xc.xc_interface_open.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(self._xc.xc_interface_open(None, None, 0))
        if not self._handle:
            raise OSError(ctypes.get_errno(), "xc_interface_open")
        self.domain = self._create()
        try:
            self._populate()
            self.privcmd = device("privcmd")
            table = map_grant_table(self.privcmd, self.domain, GRANT_FRAMES)
            self.grants = GrantTable(table)
        except OSError:
            self._call("xc_domain_destroy")
            raise

    def map(self, frames: Sequence[int]) -> mmap:
        """``frames`` of the guest, in the caller's hands."""
        return map_frames(self.privcmd, self.domain, frames)

    def read(self, frame: int, size: int = PAGE, offset: int = 0) -> bytes:
        """Bytes of one page."""
        with self.map([frame]) as area:
            return area[offset : offset + size]

    def write(self, frame: int, data: bytes, offset: int = 0) -> None:
        """Store bytes in one page."""
        with self.map([frame]) as area:
            area[offset : offset + len(data)] = data

    def take_away(self, frames: Sequence[int]) -> None:
        """Make holes in the guest's memory, as its balloon driver would."""
        array = (ctypes.c_uint64 * len(frames))(*frames)
        count = ctypes.c_ulong(len(frames))
        self._call("xc_domain_decrease_reservation_exact", count, 0, array)
        self.frames = tuple(frame for frame in self.frames if frame not in frames)

    def close(self) -> None:
        """Destroy the domain; Xen keeps the pages that somebody still has mapped."""
        self.grants.close()
        os.close(self.privcmd)
        self._call("xc_domain_destroy")
        self._xc.xc_interface_close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self) -> int:
        arm = platform.machine() == "aarch64"
        # Arm: the host's own interrupt controller, no TEE, no interrupt lines. x86: a local APIC
        architecture = struct.pack("<B3xHxxI", 0, 0, 0) if arm else struct.pack("<II", 1, 0)
        limits = (1, EVENT_CHANNELS, GRANT_FRAMES, MAPTRACK_FRAMES, GRANT_VERSION, 0, 0)
        head = CREATE.pack(0, os.urandom(16), HARDWARE_ASSISTED, 0, *limits)
        configuration = ctypes.create_string_buffer(head + architecture, len(head + architecture))
        domain = ctypes.c_uint32(0)
        if self._xc.xc_domain_create(self._handle, ctypes.byref(domain), configuration):
            raise OSError(ctypes.get_errno(), "xc_domain_create")
        return domain.value

    def _populate(self) -> None:
        count = len(self.frames)
        kib = ctypes.c_uint64(count * (PAGE >> 10) + SPARE_KIB)
        self._call("xc_domain_setmaxmem", kib)
        self._call("xc_set_paging_mempool_size", ctypes.c_uint64(PAGING_BYTES))
        array = (ctypes.c_uint64 * count)(*self.frames)
        self._call("xc_domain_populate_physmap_exact", ctypes.c_ulong(count), 0, 0, array)

    def _call(self, name: str, *arguments: object) -> None:
        """A function of ``libxenctrl`` about this domain."""
        if getattr(self._xc, name)(self._handle, ctypes.c_uint32(self.domain), *arguments):
            error = ctypes.get_errno()
            raise OSError(error, f"{name}: {os.strerror(error)}")
