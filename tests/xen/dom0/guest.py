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
from pathlib import Path
from typing import Self

from .grants import GrantTable
from .ioctl import PAGE, device
from .privcmd import map_frames, map_grant_table

CREATE = {17: struct.Struct("<I16sIIIIiiIII"), 20: struct.Struct("<I16sIIIIiiI4xII")}
"""``xen_domctl_createdomain`` of Xen 4.17 and 4.20 up to ``arch``: ssid, handle, flags, IOMMU
options, processors, event channels, grant frames, maptrack frames, grant options, trace size, pool.
Behind the grant options 4.20 has one more word, for altp2m."""

HARDWARE_ASSISTED = 1 << 0 | 1 << 1  # hvm, hap
EVENT_CHANNELS, MAPTRACK_FRAMES, GRANT_VERSION = 1023, 64, 1
PAGING_BYTES = 8 << 20
SPARE_KIB = 4096

DOMAIN_INFO_BYTES = 4096
"""More than ``xc_domaininfo_t`` has, which starts with the domain, in 16 bits."""

GRANT_FRAMES = 4
FRAMES = tuple(range(0x100, 0x900)) + tuple(range(0x10_0000, 0x10_0010))
"""8 MiB from 1 MiB on, and 16 pages behind 4 GiB."""

HIGH_FRAMES = FRAMES[-16:]

RELEASE = int(Path("/sys/hypervisor/version/minor").read_text())
"""Of Xen 4: its interface for toolstacks, and the library, belong to one release."""

LIBRARY = ctypes.CDLL(f"libxenctrl.so.4.{RELEASE}", use_errno=True)
LIBRARY.xc_interface_open.restype = ctypes.c_void_p


def interface() -> ctypes.c_void_p:
    """An open way to the hypervisor; the caller closes it."""
    handle = ctypes.c_void_p(LIBRARY.xc_interface_open(None, None, 0))
    if not handle:
        raise OSError(ctypes.get_errno(), "xc_interface_open")
    return handle


class Guest:
    """A domain with memory at ``frames``, destroyed on ``close`` if not before."""

    def __init__(self, frames: Sequence[int] = FRAMES) -> None:
        self.frames = tuple(frames)
        self._handle = interface()
        self.domain = self._create()
        self._destroyed = False
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

    def destroy(self) -> None:
        """End the domain. Xen keeps it, dying, while somebody has a page of it mapped."""
        self._call("xc_domain_destroy")
        self._destroyed = True

    def close(self) -> None:
        """Let go of the domain, and destroy it if that was not done."""
        self.grants.close()
        os.close(self.privcmd)
        if not self._destroyed:
            self.destroy()
        LIBRARY.xc_interface_close(self._handle)

    def is_gone(self) -> bool:
        """Whether Xen knows the domain no more: it was closed, and nobody has a page mapped."""
        handle = interface()
        found = ctypes.create_string_buffer(DOMAIN_INFO_BYTES)
        first, most = ctypes.c_uint32(self.domain), ctypes.c_uint(1)
        count = LIBRARY.xc_domain_getinfolist(handle, first, most, found)
        LIBRARY.xc_interface_close(handle)
        return count < 1 or ctypes.c_uint16.from_buffer(found).value != self.domain

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self) -> int:
        arm = platform.machine() == "aarch64"
        # Arm: the host's own interrupt controller, no TEE, no interrupt lines. x86: a local APIC
        architecture = struct.pack("<B3xHxxI", 0, 0, 0) if arm else struct.pack("<II", 1, 0)
        limits = (1, EVENT_CHANNELS, GRANT_FRAMES, MAPTRACK_FRAMES, GRANT_VERSION, 0, 0)
        head = CREATE[RELEASE].pack(0, os.urandom(16), HARDWARE_ASSISTED, 0, *limits)
        configuration = ctypes.create_string_buffer(head + architecture, len(head + architecture))
        domain = ctypes.c_uint32(0)
        if LIBRARY.xc_domain_create(self._handle, ctypes.byref(domain), configuration):
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
        if getattr(LIBRARY, name)(self._handle, ctypes.c_uint32(self.domain), *arguments):
            error = ctypes.get_errno()
            raise OSError(error, f"{name}: {os.strerror(error)}")
