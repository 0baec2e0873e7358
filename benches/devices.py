"""The devices that are measured beside the examples, with the shortest bodies that do the job."""

from collections.abc import Sequence

import vhost_user as vu


class Batched(vu.BlockDevice):
    """A RAM disk, one call into Python for each batch."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)
        self.mem = bytearray(size)

    def on_batch(self, batch: vu.BlockBatch) -> None:
        """Answers all of `batch`: Python says from where, Rust moves the bytes."""
        batch.copy_from(self.mem)
        batch.copy_to(self.mem)


class Looped(Batched):
    """The same again, with a look at each request."""

    def on_batch(self, batch: Sequence[vu.BlockRequest]) -> None:
        """Answers all of `batch`, one by one."""
        mem = self.mem
        for request in batch:
            if request.op == "read":
                request.copy_from(mem, request.offset)
            elif request.op == "write":
                request.copy_to(mem, request.offset)
