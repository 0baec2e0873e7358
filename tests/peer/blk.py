"""Block requests, laid out by the standard's picture: header, data, status.

Source: VIRTIO 1.3, "Block Device", "Device Operation". A sector is 512 bytes.
"""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from .memory import GuestMemory
from .patience import PATIENCE
from .ring import Segment, SplitRing

SECTOR = 512
HEADER = struct.Struct("<IIQ")
RANGE = struct.Struct("<QII")
CANARY = 0xA5
"""What the driver leaves in a status byte and around buffers: no status, and easy to see."""


class Type(IntEnum):
    """Request types."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    """The last byte of a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class BlkFeature(IntFlag):
    """Feature bits of a block device."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


CONFIG_WRITEBACK = 32
"""Offset of `writeback` in the configuration space."""


def segment_range(sector: int, count: int, flags: int = 0) -> bytes:
    """One segment of a DISCARD or WRITE_ZEROES request."""
    return RANGE.pack(sector, count, flags)


class Request(NamedTuple):
    """A request as it lies in guest memory."""

    header: int
    data: int
    length: int
    writable: bool
    status: int

    def chain(self) -> list[Segment]:
        """Header, data and status in a descriptor each."""
        data = [Segment(self.data, self.length, self.writable)] if self.length else []
        return [Segment(self.header, 16), *data, Segment(self.status, 1, True)]


class Result(NamedTuple):
    """How a request ended."""

    status: int
    data: bytes
    used: int


class Requests:
    """Block requests in guest memory, for a ring of either format."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory

    def prepare(self, kind: int, sector: int, data: bytes = b"", room: int = 0) -> Request:
        """Writes header and data; `room` is the length of device-writable data instead."""
        header = self.memory.allocate(16)
        self.memory.write(header, HEADER.pack(kind, 0, sector))
        length = room or len(data)
        where = self.memory.allocate(length) if length else 0
        if data:
            self.memory.write(where, data)
        elif room:
            self.memory.write(where, bytes([CANARY]) * room)
        status = self.memory.allocate(1, 1)
        self.memory.write(status, bytes([CANARY]))
        return Request(header, where, length, bool(room), status)

    def result(self, request: Request, used: int = 0) -> Result:
        """What lies in the request's buffers now."""
        data = self.memory.read(request.data, request.length) if request.writable else b""
        return Result(self.memory.read(request.status, 1)[0], data, used)


class BlkDriver(Requests):
    """Block requests over one ring, one at a time or many in flight."""

    def __init__(self, memory: GuestMemory, ring: SplitRing) -> None:
        super().__init__(memory)
        self.ring = ring

    def submit(self, request: Request) -> int:
        """Makes a request available without a kick; gives its head."""
        return self.ring.add(request.chain())

    def run(self, request: Request, seconds: float = PATIENCE) -> Result:
        """Submits, kicks, and waits for the end."""
        head = self.submit(request)
        self.ring.kick()
        (used,) = self.ring.wait(1, seconds)
        assert used.head == head, f"used entry for head {used.head}, submitted {head}"
        return self.result(request, used.length)

    def read(self, sector: int, length: int, seconds: float = PATIENCE) -> Result:
        """Reads `length` bytes at `sector`."""
        return self.run(self.prepare(Type.IN, sector, room=length), seconds)

    def write(self, sector: int, data: bytes, seconds: float = PATIENCE) -> Result:
        """Writes `data` at `sector`."""
        return self.run(self.prepare(Type.OUT, sector, data), seconds)

    def flush(self) -> Result:
        """Flushes."""
        return self.run(self.prepare(Type.FLUSH, 0))

    def get_id(self, room: int = 20) -> Result:
        """Reads the serial number into `room` bytes."""
        return self.run(self.prepare(Type.GET_ID, 0, room=room))

    def discard(self, *ranges: bytes) -> Result:
        """Discards ranges made by `segment_range`."""
        return self.run(self.prepare(Type.DISCARD, 0, b"".join(ranges)))

    def write_zeroes(self, *ranges: bytes) -> Result:
        """Zeroes ranges made by `segment_range`."""
        return self.run(self.prepare(Type.WRITE_ZEROES, 0, b"".join(ranges)))
