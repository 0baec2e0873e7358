"""Grant mappings and grant copies: memory that another domain has offered by reference."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import NamedTuple

from .ioctl import PAGE, address, call, number

MAP_GRANT_REF = number("G", 0, 24)
UNMAP_GRANT_REF = number("G", 1, 16)
GRANT_COPY = number("G", 8, 16)

MAP = struct.Struct("<I4xQ")  # count, index
REFERENCE = struct.Struct("<II")  # domain, reference
UNMAP = struct.Struct("<QI4x")  # index, count
COPY = struct.Struct("<I4xQ")  # count, segments
SEGMENT = struct.Struct("<IHHQHHh2x")  # reference, offset, domain, address, length, flags, status
SEGMENT_BACK = struct.Struct("<QIHHHHh2x")  # the same with the grant as the destination
SOURCE_IS_GRANT, DESTINATION_IS_GRANT = 1, 2

READ = mmap.PROT_READ
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class Granted:
    """References of ``domain``, mapped by one call until ``close``.

    ``OSError`` with ``EINVAL`` when any one of them cannot be mapped so.
    """

    def __init__(
        self, fd: int, domain: int, references: Sequence[int], protection: int = READ_WRITE
    ) -> None:
        self.fd = fd
        self.count = len(references)
        self._forgotten = False
        pairs = b"".join(REFERENCE.pack(domain, reference) for reference in references)
        argument = bytearray(MAP.pack(self.count, 0) + pairs)
        call(fd, MAP_GRANT_REF, argument)
        self.index = MAP.unpack_from(argument)[1]
        try:
            self.area = mmap.mmap(
                fd, self.count * PAGE, flags=mmap.MAP_SHARED, prot=protection, offset=self.index
            )
        except OSError:
            self.forget()
            raise

    def close(self) -> None:
        """Unmap, and give the index back if that was not done before."""
        self.area.close()
        if not self._forgotten:
            self.forget()

    def forget(self) -> None:
        """Give the index back. The pages stay until the area is unmapped or its process ends."""
        call(self.fd, UNMAP_GRANT_REF, bytearray(UNMAP.pack(self.index, self.count)))
        self._forgotten = True

    def __enter__(self) -> mmap.mmap:
        return self.area

    def __exit__(self, *_: object) -> None:
        self.close()


class Piece(NamedTuple):
    """A stretch of one granted page."""

    reference: int
    offset: int
    length: int


def copy_from(fd: int, domain: int, pieces: Sequence[Piece]) -> tuple[bytes, list[int]]:
    """The bytes of ``pieces`` one after another, and Xen's status for each."""
    local = bytearray(sum(piece.length for piece in pieces))
    statuses = copy(fd, segments_into(local, domain, pieces))
    return bytes(local), statuses


def segments_into(local: bytearray, domain: int, pieces: Sequence[Piece]) -> bytearray:
    """What ``copy`` takes to bring ``pieces`` into ``local``, which must outlive it."""
    segments, place = bytearray(), address(local)
    for reference, offset, length in pieces:
        source = (reference, offset, domain)
        segments += SEGMENT.pack(*source, place, length, SOURCE_IS_GRANT, 0)
        place += length
    return segments


def copy_to(fd: int, domain: int, piece: Piece, data: bytes) -> int:
    """Write ``data`` into ``piece``; gives Xen's status."""
    local = bytearray(data)
    target = (piece.reference, piece.offset, domain)
    flags = DESTINATION_IS_GRANT
    segments = bytearray(SEGMENT_BACK.pack(address(local), *target, piece.length, flags, 0))
    return copy(fd, segments)[0]


def copy(fd: int, segments: bytearray) -> list[int]:
    """Let Xen copy ``segments`` by one call; gives its status for each, 0 for success."""
    count = len(segments) // SEGMENT.size
    call(fd, GRANT_COPY, bytearray(COPY.pack(count, address(segments))))
    return [SEGMENT.unpack_from(segments, n * SEGMENT.size)[-1] for n in range(count)]
