"""Files that are packed by one of the programs which Debian packs kernels and modules with."""

from __future__ import annotations

import lzma
import zlib

import zstandard

XZ, GZIP, ZSTANDARD = b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
GZIP_FORMAT = 31
"""For ``zlib``: a window of any size, with gzip's header and trailer."""


def unpacked(data: bytes) -> bytes:
    """What ``data`` holds, packed with xz, gzip or Zstandard, or else ``data``; what stands behind
    it is left out.
    """
    if data.startswith(XZ):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)
    if data.startswith(GZIP):
        return zlib.decompressobj(GZIP_FORMAT).decompress(data)
    if data.startswith(ZSTANDARD):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data
