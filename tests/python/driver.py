"""A driver that leaves requests open and lays their data out as it likes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

from peer.blk import CANARY, HEADER, Type
from peer.front_end import FrontEnd
from peer.ring import Segment, Used


class OpenRequest:
    """A read or a write in flight, its data in pieces."""

    def __init__(self, front: FrontEnd, kind: Type, offset: int, sizes: Sequence[int]) -> None:
        memory = front.memory
        self.memory = memory
        header = memory.allocate(16)
        memory.write(header, HEADER.pack(kind, 0, offset // 512))
        # A gap before each piece, so that no two can be taken for one.
        self.pieces = [(memory.allocate(size + 64) + 64, size) for size in sizes]
        self.status_at = memory.allocate(1, 1)
        memory.write(self.status_at, bytes([CANARY]))
        for where, size in self.pieces:
            memory.write(where - 64, bytes([CANARY]) * (size + 64))
        data = [Segment(where, size, kind == Type.IN) for where, size in self.pieces]
        ring = front.rings[0]
        self.head = ring.add([Segment(header, 16), *data, Segment(self.status_at, 1, True)])

    @property
    def data(self) -> bytes:
        """What lies in the pieces now."""
        return b"".join(self.memory.read(where, size) for where, size in self.pieces)

    @data.setter
    def data(self, value: bytes) -> None:
        for where, size in self.pieces:
            self.memory.write(where, value[:size])
            value = value[size:]

    @property
    def status(self) -> int:
        return self.memory.read(self.status_at, 1)[0]

    @property
    def untouched(self) -> bool:
        """Nobody has written to the data or around it."""
        return all(
            self.memory.read(where - 64, size + 64) == bytes([CANARY]) * (size + 64)
            for where, size in self.pieces
        )


class OpenDriver:
    """Reads and writes that are submitted and awaited apart."""

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        self.ring = front.rings[0]

    def read(self, offset: int, *sizes: int) -> OpenRequest:
        """A read, submitted."""
        return self._submit(Type.IN, offset, sizes)

    def write(self, offset: int, data: bytes, *sizes: int) -> OpenRequest:
        """A write of `data`, submitted; in one piece by default."""
        request = OpenRequest(self.front, Type.OUT, offset, sizes or [len(data)])
        request.data = data
        self.ring.kick()
        return request

    def wait(self) -> Used:
        """The next request that is answered."""
        (used,) = self.ring.wait(1)
        return used

    def _submit(self, kind: Type, offset: int, sizes: Sequence[int]) -> OpenRequest:
        request = OpenRequest(self.front, kind, offset, sizes)
        self.ring.kick()
        return request


@contextmanager
def open_driver(socket: str | PathLike[str]) -> Iterator[OpenDriver]:
    """A driver with one running ring."""
    with FrontEnd.connect(str(socket)).start() as front:
        yield OpenDriver(front)
