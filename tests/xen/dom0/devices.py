"""Devices for the back-end under test, written in Python."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread

import vhost_user as vu


class RamDisk(vu.BlockDevice):
    """A disk in a ``bytearray``."""

    def __init__(self, content: bytes) -> None:
        super().__init__(size=len(content))
        self.content = bytearray(content)

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = self.content[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.content[offset : offset + len(buf)] = buf

    def flush(self) -> None:
        """Nothing is kept."""


class LaterDisk(RamDisk):
    """The same, but it keeps what it is asked, and answers on another thread."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.kept: SimpleQueue[vu.BlockRequest] = SimpleQueue()
        Thread(target=self.answer, daemon=True).start()

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            if request.op in ("read", "write"):
                self.kept.put(request.defer())

    def answer(self) -> None:
        while True:
            request = self.kept.get()
            place = memoryview(self.content)[request.offset : request.offset + request.length]
            if request.op == "read":
                request.copy_from(place)
            else:
                request.copy_to(place)
            request.complete()


KEEP_SECTOR, LET_GO_SECTOR, FORK_SECTOR = 1, 2, 3


class ViewDisk(vu.BlockDevice):
    """Reads say what is behind their view: ``device``, or ``memory`` of this process.

    What a read of ``KEEP_SECTOR`` shows is kept, until the first of ``LET_GO_SECTOR``; then it
    becomes ``late``. A read of ``FORK_SECTOR`` says what a forked child finds behind its view.
    """

    def __init__(self) -> None:
        super().__init__(size=1 << 20)
        self.kept: list[memoryview] = []

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:6] = b"device" if is_of_device(buf) else b"memory"
        if offset == KEEP_SECTOR * 512:
            self.kept.append(buf[:])
        elif offset == LET_GO_SECTOR * 512:
            for view in self.kept:
                view[:4] = b"late"
            self.kept.clear()
        elif offset == FORK_SECTOR * 512:
            buf[:6] = found_by_a_child(buf)

    def write(self, offset: int, buf: memoryview, /) -> None:
        """Looks at all of the data."""
        bytes(buf)


def is_of_device(view: memoryview) -> bool:
    """Whether one of Xen's devices is mapped where ``view`` begins."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
            if start <= address < end:
                return "gntdev" in line or "privcmd" in line
    raise AssertionError(f"nothing is mapped at {address:#x}")


def found_by_a_child(view: memoryview) -> bytes:
    """What a forked child reads behind ``view``: ``zeroes``, ``others``; ``killed`` if it ends."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = int(any(view))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return {0: b"zeroes", 1: b"others"}.get(os.waitstatus_to_exitcode(status), b"killed")


class DirectDisk(vu.BlockDevice):
    """Has requests moved to and from a device that it has opened for direct I/O."""

    def __init__(self, device: str) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        super().__init__(size=os.lseek(self.fd, 0, os.SEEK_END))

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            if request.op == "read":
                request.preadv(self.fd)
            elif request.op == "write":
                request.pwritev(self.fd)

    def flush(self) -> None:
        os.fsync(self.fd)
