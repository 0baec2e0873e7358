"""The configuration space of a block device, decoded.

VIRTIO 1.3, "Block Device", "Device configuration layout". Fields behind a feature that is not
offered are left out.
"""

import struct

SECTOR = 512
LENGTH = 60
"""Bytes up to and with the fields of WRITE_ZEROES: what is decoded here."""

_FIELDS = (
    # name, offset, format, feature
    ("capacity_sectors", 0, "<Q", None),
    ("size_max", 8, "<I", "SIZE_MAX"),
    ("seg_max", 12, "<I", "SEG_MAX"),
    ("cylinders", 16, "<H", "GEOMETRY"),
    ("heads", 18, "<B", "GEOMETRY"),
    ("sectors", 19, "<B", "GEOMETRY"),
    ("blk_size", 20, "<I", "BLK_SIZE"),
    ("physical_block_exp", 24, "<B", "TOPOLOGY"),
    ("alignment_offset", 25, "<B", "TOPOLOGY"),
    ("min_io_size", 26, "<H", "TOPOLOGY"),
    ("opt_io_size", 28, "<I", "TOPOLOGY"),
    ("writeback", 32, "<B", "CONFIG_WCE"),
    ("num_queues", 34, "<H", "MQ"),
    ("max_discard_sectors", 36, "<I", "DISCARD"),
    ("max_discard_seg", 40, "<I", "DISCARD"),
    ("discard_sector_alignment", 44, "<I", "DISCARD"),
    ("max_write_zeroes_sectors", 48, "<I", "WRITE_ZEROES"),
    ("max_write_zeroes_seg", 52, "<I", "WRITE_ZEROES"),
    ("write_zeroes_may_unmap", 56, "<B", "WRITE_ZEROES"),
)


def decode(config: bytes, features: list[str]) -> dict[str, int]:
    """The fields in ``config`` that the named features make valid, in order, and ``size`` in
    bytes first."""
    fields = {
        name: struct.unpack_from(form, config, offset)[0]
        for name, offset, form, feature in _FIELDS
        if offset + struct.calcsize(form) <= len(config) and feature in (None, *features)
    }
    return {"size": fields.get("capacity_sectors", 0) * SECTOR, **fields}
