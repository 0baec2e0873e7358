"""Devices that the tests serve."""

import os
import threading
from collections.abc import Sequence

import vhost_user as vu

SIZE = 1 << 20


class RamDisk(vu.BlockDevice):
    """A disk in memory, served one request at a time."""

    def __init__(self, size: int = SIZE, *, num_queues: int = 1, read_only: bool = False) -> None:
        super().__init__(size=size, num_queues=num_queues, read_only=read_only, serial="ram-1")
        self.mem = memoryview(bytearray(size))

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.mem[offset : offset + len(buf)] = buf


class BatchDisk(RamDisk):
    """The same, a batch at a time."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            end = request.offset + request.length
            if request.op == "read":
                request.copy_from(self.mem[request.offset : end])
            elif request.op == "write":
                request.copy_to(self.mem[request.offset : end])


class Keeping(RamDisk):
    """Keeps each request, or each with this ``op``, until the test takes it."""

    def __init__(self, op: str | None = None) -> None:
        super().__init__()
        self.kept: list[vu.BlockRequest] = []
        self._op = op
        self._some = threading.Semaphore(0)

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            if self._op in (None, request.op):
                self.kept.append(request.defer())
                self._some.release()

    def take(self) -> vu.BlockRequest:
        assert self._some.acquire(timeout=10)
        return self.kept.pop(0)


class Calls(RamDisk):
    """Notes what it is asked for."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.calls: list[tuple[object, ...]] = []

    def flush(self) -> None:
        self.calls.append(("flush",))

    def discard(self, offset: int, length: int, /) -> None:
        self.calls.append(("discard", offset, length))

    def write_zeroes(self, offset: int, length: int, unmap: bool, /) -> None:
        self.calls.append(("write_zeroes", offset, length, unmap))
        self.mem[offset : offset + length] = bytes(length)

    def on_start(self) -> None:
        self.calls.append(("start", self.negotiated_features))

    def on_stop(self) -> None:
        self.calls.append(("stop",))

    def on_disconnect(self) -> None:
        self.calls.append(("disconnect",))


class Keeper(RamDisk):
    """Keeps what `keep` makes of the view of each read."""

    def __init__(self) -> None:
        super().__init__()
        self.mem[:] = os.urandom(SIZE)
        self.kept: list[object] = []
        self.entered = threading.Event()

    def keep(self, buf: memoryview) -> object:
        return buf

    def read(self, offset: int, buf: memoryview, /) -> None:
        super().read(offset, buf)
        self.kept.append(self.keep(buf))
        self.entered.set()
