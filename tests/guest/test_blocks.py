"""A Linux guest on a disk whose logical blocks have 4096 bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import vhost_user as vu

from .conftest import Boot
from .rig.machine import Device

BLOCK = 4096
SECTOR = 512
DISK_BYTES = 8 << 20

FIRST, COUNT = 16, 256
"""Blocks of the one partition."""


def partition_table() -> bytes:
    """A master boot record with one partition; its numbers count in logical blocks."""
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), FIRST, COUNT)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def test_a_partition_table_that_counts_in_long_blocks_is_found(
    boot: Boot, socket_path: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    content = bytearray(partition_table().ljust(DISK_BYTES, b"\0"))
    image.write_bytes(content)
    with vu.Backend(vu.FileDisk(image, block_size=BLOCK), socket=socket_path):
        guest = boot(Device(model="vhost-user-blk-pci,num-queues=1", socket=socket_path))
        queue = "/sys/block/vda/queue"
        sizes = guest.sh(f"cat {queue}/logical_block_size {queue}/physical_block_size").split()
        assert sizes == [str(BLOCK), str(BLOCK)]
        # Linux tells places on disks in sectors of 512 bytes.
        place = guest.sh("cat /sys/block/vda/vda1/start /sys/block/vda/vda1/size").split()
        assert place == [str(FIRST * BLOCK // SECTOR), str(COUNT * BLOCK // SECTOR)]
        guest.sh("printf here | dd of=/dev/vda1 bs=512 seek=1 conv=fsync 2>&1")
    at = FIRST * BLOCK + SECTOR
    content[at : at + 4] = b"here"
    assert image.read_bytes() == content
