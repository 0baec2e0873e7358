"""A guest's grant table, written from outside.

An entry of version 1 is 8 bytes: u16 flags, u16 domain that may map, u32 frame. Xen sets two more
flags while a page is mapped, so the table itself shows whether a back-end has let go.
Source: Xen, ``xen/include/public/grant_table.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from mmap import mmap

from peer.patience import PATIENCE
from peer.process import eventually

ENTRY = struct.Struct("<HHI")
FLAGS = struct.Struct("<H")
PERMIT_ACCESS, READ_ONLY = 1 << 0, 1 << 2
READING, WRITING = 1 << 3, 1 << 4


class GrantTable:
    """The table in ``area``; owns it. References 0 to 7 are Xen's own."""

    def __init__(self, area: mmap) -> None:
        self._area = area
        self.size = len(area) // ENTRY.size

    def grant(self, reference: int, frame: int, *, read_only: bool = False, to: int = 0) -> None:
        """Let domain ``to`` map ``frame`` by ``reference``. The flags are written last."""
        ENTRY.pack_into(self._area, reference * ENTRY.size, 0, to, frame)
        flags = PERMIT_ACCESS | (READ_ONLY if read_only else 0)
        FLAGS.pack_into(self._area, reference * ENTRY.size, flags)

    def revoke(self, *references: int) -> None:
        """End the grants. A page that is mapped must not be revoked: ``ValueError``."""
        if used := self.in_use(references):
            raise ValueError(f"references in use cannot be revoked: {used}")
        for reference in references:
            ENTRY.pack_into(self._area, reference * ENTRY.size, 0, 0, 0)

    def revoke_all(self) -> None:
        """End all grants, once a back-end that was left or told to stop has let go of the pages.

        ``TimeoutError`` when it does not.
        """
        if not eventually(lambda: not self.in_use()):
            raise TimeoutError(f"still in use after {PATIENCE} s: {self.in_use()}")
        self._area[:] = bytes(len(self._area))

    def in_use(self, references: Iterable[int] | None = None) -> list[int]:
        """The references that somebody has mapped; of ``references`` or of the whole table."""
        asked = range(self.size) if references is None else references
        return [reference for reference in asked if self.flags(reference) & (READING | WRITING)]

    def flags(self, reference: int) -> int:
        (flags,) = FLAGS.unpack_from(self._area, reference * ENTRY.size)
        return int(flags)

    def close(self) -> None:
        self._area.close()
