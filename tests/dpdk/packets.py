"""Ethernet frames with known bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

ADDRESSES = bytes.fromhex("020000000001 020000000002")
EXPERIMENTAL = 0x88B5
"""IEEE 802: the type of frames that are nobody's but the sender's."""

HEADER = struct.Struct("!12sHII")


def numbered(lengths: Iterable[int], *, pair: int = 0) -> list[bytes]:
    """A frame for each length, at least 22 bytes: the pair, a number, then random bytes."""
    source = random.Random(pair)
    heads = (
        (HEADER.pack(ADDRESSES, EXPERIMENTAL, pair, number), length)
        for number, length in enumerate(lengths)
    )
    return [head + source.randbytes(length - len(head)) for head, length in heads]
