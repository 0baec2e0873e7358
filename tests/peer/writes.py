"""Writes that are in flight all the time, and what must have come of them."""

import random

from .blk import CANARY, Status, Type
from .front_end import FrontEnd

SLOTS = 16
BYTES = 4096


class Load:
    """Writes that are in flight all the time, each to a place of its own."""

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        disk = front.blk()
        self._requests = [disk.prepare(Type.OUT, 8 * n, bytes(BYTES)) for n in range(SLOTS)]
        self._written = [0] * SLOTS
        self._in_flight: dict[int, int] = {}

    def submit(self) -> None:
        """Has every request in flight that is not."""
        memory, ring = self.front.memory, self.front.rings[0]
        for slot in set(range(SLOTS)) - set(self._in_flight.values()):
            self._written[slot] += 1
            request = self._requests[slot]
            memory.write(request.data, self.data(slot))
            memory.write(request.status, bytes([CANARY]))
            self._in_flight[ring.add(request.chain())] = slot
        ring.kick()

    def data(self, slot: int) -> bytes:
        """What was written last to a place."""
        return random.Random(self._written[slot] * SLOTS + slot).randbytes(BYTES)

    def take(self, count: int) -> None:
        """Waits for answers; each is the only one to its request, and good."""
        for used in self.front.rings[0].wait(count, 60):
            slot = self._in_flight.pop(used.head)
            status = self.front.memory.read(self._requests[slot].status, 1)[0]
            assert status == Status.OK, f"request {slot} ended with {status:#x}"

    def finish(self) -> None:
        """Waits for all."""
        self.take(len(self._in_flight))
