"""Numbers and calls of Linux's Xen devices, whose arguments are structures in memory.

Source: Linux, ``include/uapi/xen/privcmd.h`` and ``include/uapi/xen/gntdev.h``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from mmap import mmap

PAGE = 4096
"""Xen's page, whatever the size of the kernel's."""


def number(kind: str, sequence: int, size: int) -> int:
    """``_IOC(_IOC_NONE, kind, sequence, size)``."""
    return size << 16 | ord(kind) << 8 | sequence


def call(fd: int, request: int, argument: bytearray) -> int:
    """``OSError`` when it fails; what the kernel answers stands in ``argument``."""
    return int(fcntl.ioctl(fd, request, argument, True))


def device(name: str) -> int:
    """An open ``/dev/xen/NAME``."""
    return os.open(f"/dev/xen/{name}", os.O_RDWR | os.O_CLOEXEC)


def address(memory: mmap | bytearray) -> int:
    """Where writable ``memory`` lies in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
