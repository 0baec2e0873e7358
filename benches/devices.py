"""The devices that are measured, with the shortest bodies that do the job."""

from collections.abc import Sequence

import vhost_user as vu


class PerRequest(vu.BlockDevice):
    """A RAM disk, one call into Python for each request."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)
        self.mem = memoryview(bytearray(size))

    def read(self, offset: int, buf: memoryview) -> None:
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview) -> None:
        self.mem[offset : offset + len(buf)] = buf


class Batched(vu.BlockDevice):
    """The same RAM disk, one call into Python for each batch."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)
        self.mem = memoryview(bytearray(size))

    def on_batch(self, batch: Sequence[vu.BlockRequest]) -> None:
        mem = self.mem
        for request in batch:
            start = request.offset
            if request.op == "read":
                request.copy_from(mem[start : start + request.length])
            elif request.op == "write":
                request.copy_to(mem[start : start + request.length])
