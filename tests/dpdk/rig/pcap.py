"""Files of packets. Source: IETF draft "PCAP Capture File Format"."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE = struct.Struct("<IHHiIII")  # magic, version, time zone, accuracy, longest packet, link type
RECORD = struct.Struct("<IIII")  # seconds, microseconds, bytes in the file, bytes of the packet
MAGIC = 0xA1B2C3D4
LONGEST = 1 << 16
ETHERNET = 1


def write(path: Path, packets: Iterable[bytes]) -> None:
    with open(path, "wb") as file:
        file.write(FILE.pack(MAGIC, 2, 4, 0, 0, LONGEST, ETHERNET))
        for packet in packets:
            file.write(RECORD.pack(0, 0, len(packet), len(packet)) + packet)


def read(path: Path) -> list[bytes]:
    return list(_packets(path.read_bytes()))


def _packets(data: bytes) -> Iterator[bytes]:
    place = FILE.size
    while place < len(data):
        _, _, stored, length = RECORD.unpack_from(data, place)
        assert stored == length, f"a packet of {length} bytes was cut off after {stored}"
        place += RECORD.size
        yield data[place : place + stored]
        place += stored
