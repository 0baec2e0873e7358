"""Devices that receive, and drivers that give them buffers."""

import queue as fifo
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vhost_user as vu
from peer.front_end import FrontEnd
from peer.ring import WRITE, Segment, SplitRing, Used

SECONDS = 10.0
"""Longest wait for anything."""

NOWHERE = 1 << 40
"""An address at which no front-end of the tests has memory."""


class Port(vu.Device):
    """Receives on queue 0, gets requests on queue 1, and notes what it is told."""

    device_id = 3

    def __init__(self, size: int = 256, **options: Any) -> None:
        super().__init__(num_queues=2, queue_size=size, receive_queues=(0,), **options)
        self.told: fifo.SimpleQueue[str] = fifo.SimpleQueue()

    @property
    def rx(self) -> vu.Queue:
        """The queue that it receives on."""
        return self.queues[0]

    def hears(self, *names: str) -> None:
        """Waits for the next callbacks, which are to be these and in this order."""
        for name in names:
            heard = self.told.get(timeout=SECONDS)
            assert heard == name, f"{heard}, where {name} was due"

    def hears_nothing_more(self) -> None:
        """No callback came that was not expected."""
        assert self.told.empty(), self.told.get()

    def on_buffers(self, queue: vu.Queue, /) -> None:
        self.told.put(f"buffers {queue.index}")

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            request.complete(0)


class Buffers:
    """A driver's buffers on one ring: each as long as its slot says."""

    def __init__(self, front: FrontEnd, index: int = 0, room: int = 2048) -> None:
        self.front, self.index, self.room = front, index, room
        self.places: dict[int, int] = {}

    @property
    def ring(self) -> SplitRing:
        """The ring that they are in."""
        return self.front.rings[self.index]

    def give(
        self,
        count: int = 1,
        *,
        room: int | None = None,
        readable: int = 0,
        outside: Container[int] = (),
    ) -> list[int]:
        """Makes buffers available, all at once, and kicks; gives their heads. Those with the
        numbers ``outside``, counted from 0, are not in memory.
        """
        size, heads = self.room if room is None else room, []
        for number in range(count):
            place = self.front.memory.allocate(size)
            out = [Segment(self.front.memory.allocate(readable), readable)] if readable else []
            into = [Segment(place, size, True)] if size else []
            head = self.ring.lay([*out, *into])
            if number in outside:
                self.ring.set_descriptor(head, NOWHERE, size, WRITE)
            self.places[head] = place
            heads.append(head)
        self.ring.offer(*heads)
        self.ring.kick()
        return heads

    def give_again(self, used: list[Used]) -> None:
        """Makes buffers that came back available once more, and kicks."""
        places = [self.places.pop(buffer.head) for buffer in used]
        for place in places:
            head = self.ring.lay([Segment(place, self.room, True)])
            self.places[head] = place
            self.ring.offer(head)
        self.ring.kick()

    def come(self, count: int = 1) -> list[Used]:
        """Waits for a call and takes that many used buffers."""
        return self.ring.wait(count, SECONDS)

    def data(self, used: Used) -> bytes:
        """What the device has written into a buffer."""
        return self.front.memory.read(self.places[used.head], used.length)

    def frame(self, count: int = 1) -> bytes:
        """What the next used buffers hold together."""
        return b"".join(self.data(used) for used in self.come(count))


@contextmanager
def receiving(
    device: vu.Device, socket: Path, *, size: int = 64, also: int = 0, **options: Any
) -> Iterator[FrontEnd]:
    """A front-end with both rings running, and no buffer in them."""
    with (
        vu.Backend(device, socket=socket, **options),
        FrontEnd.connect(str(socket)).start(2, size, also=also) as front,
    ):
        yield front
