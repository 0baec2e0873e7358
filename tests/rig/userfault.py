"""Pages that do not come before a test lets them: userfaultfd(2), for faults of user code only."""

import ctypes
import fcntl
import os
import platform
import select
import struct
from collections.abc import Iterator
from typing import Self

SYSCALL = {"x86_64": 323, "aarch64": 282}
USER_MODE_ONLY = 1

API, REGISTER, COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
MISSING = 1
PAGEFAULT = 0x12
MESSAGE = 32


class Unavailable(Exception):
    """There is no such descriptor for this user, or on this kernel."""


class Userfault:
    """A descriptor that tells of accesses to pages which are not there."""

    def __init__(self) -> None:
        number = SYSCALL.get(platform.machine())
        if number is None:
            raise Unavailable(platform.machine())
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | USER_MODE_ONLY)
        if self.fd < 0:
            raise Unavailable(os.strerror(ctypes.get_errno()))
        fcntl.ioctl(self.fd, API, bytearray(struct.pack("=QQQ", 0xAA, 0, 0)))

    def guard(self, address: int, length: int) -> None:
        """From now on who touches a page of these that is not there waits for ``fill``."""
        fcntl.ioctl(self.fd, REGISTER, bytearray(struct.pack("=QQQQ", address, length, MISSING, 0)))

    def wait(self, seconds: float) -> int:
        """Waits until somebody does; gives the address. ``TimeoutError`` if nobody does."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise TimeoutError(f"no page was asked for in {seconds} s")
        message = os.read(self.fd, MESSAGE)
        assert message[0] == PAGEFAULT, message
        (address,) = struct.unpack_from("=Q", message, 16)
        return int(address)

    def fill(self, address: int, data: bytes) -> None:
        """Gives the page at an address its bytes and lets all who wait for it go on."""
        source = ctypes.create_string_buffer(data, len(data))
        where = struct.pack("=QQQQq", address, ctypes.addressof(source), len(data), 0, 0)
        fcntl.ioctl(self.fd, COPY, bytearray(where))

    def close(self) -> None:
        """Lets everybody go on."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mappings(name: str) -> Iterator[tuple[int, int]]:
    """Where this process has mapped memfds of a name: first address, and bytes."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        for line in lines:
            if f"/memfd:{name}" in line:
                first, last = (int(part, 16) for part in line.split()[0].split("-"))
                yield first, last - first
