"""Kernels and modules are unpacked, whichever program Debian has packed them with."""

import gzip
import lzma
import struct

import pytest
import zstandard
from rig.unpack import unpacked

from .rig.kernel import PAYLOAD, PAYLOAD_FIELD, SECTOR, SETUP_SECTORS, extract

ELF = b"\x7fELF" + bytes(range(256)) * 64
PACKED = {
    "xz": lzma.compress(ELF),
    "gzip": gzip.compress(ELF),
    "zstandard": zstandard.compress(ELF),
    "not": ELF,
}
BEHIND = struct.pack("<I", len(ELF))
"""The build of Linux writes the size behind what it has packed."""


@pytest.mark.parametrize("way", PACKED)
def test_what_is_packed_comes_out(way: str) -> None:
    assert unpacked(PACKED[way]) == ELF


@pytest.mark.parametrize("way", ["xz", "gzip", "zstandard"])
def test_what_stands_behind_it_is_left_out(way: str) -> None:
    assert unpacked(PACKED[way] + BEHIND) == ELF


@pytest.mark.parametrize("way", ["xz", "gzip", "zstandard"])
def test_a_kernel_image_gives_its_kernel(way: str) -> None:
    image = bytearray(3 * SECTOR)
    image[SETUP_SECTORS] = 1
    offset, payload = SECTOR, PACKED[way] + BEHIND
    PAYLOAD.pack_into(image, PAYLOAD_FIELD, offset, len(payload))
    assert extract(bytes(image) + payload + b"signature") == ELF


def test_an_image_without_a_kernel_is_an_error() -> None:
    image = bytearray(4 * SECTOR)
    PAYLOAD.pack_into(image, PAYLOAD_FIELD, 0, SECTOR)
    with pytest.raises(ValueError, match="no ELF file"):
        extract(bytes(image))
