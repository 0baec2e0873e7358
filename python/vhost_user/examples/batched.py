"""A RAM disk that takes requests by the batch: one call for all that are waiting."""

from collections.abc import Sequence

import vhost_user as vu


class BatchedRamDisk(vu.BlockDevice):
    """A disk in this process's memory, gone when the process ends."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)
        self.mem = memoryview(bytearray(size))

    def on_batch(self, batch: Sequence[vu.BlockRequest]) -> None:
        """Python says from where to where, the core copies. Returning answers them all."""
        for request in batch:
            place = self.mem[request.offset : request.offset + request.length]
            if request.op == "read":
                request.copy_from(place)
            elif request.op == "write":
                request.copy_to(place)


if __name__ == "__main__":
    vu.serve(BatchedRamDisk(64 << 20), socket="batched.sock")
