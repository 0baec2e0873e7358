"""Names of feature bits, and the fields of a block device's configuration space."""

import re
from pathlib import Path

from vhost_user.cli import features
from vhost_user.cli.block_config import LENGTH, decode

SOURCE = Path(__file__).parents[2] / "rust/core/src/wire/features.rs"


def test_protocol_features_have_the_cores_names() -> None:
    found = re.findall(r"^        const ([A-Z]\w+) = 1 << (\d+);", SOURCE.read_text(), re.MULTILINE)
    assert {int(bit): name for name, bit in found} == features.PROTOCOL


def test_features_have_the_cores_names() -> None:
    found = re.findall(r"^pub const (\w+): u64 = 1 << (\d+);", SOURCE.read_text(), re.MULTILINE)
    assert {int(bit): name for name, bit in found}.items() <= features.COMMON.items()


def test_bits_are_named_from_the_lowest_and_numbered_where_they_have_no_name() -> None:
    bits = 1 << 63 | 1 << 32 | 1 << 9 | 1 << 3
    assert features.feature_names(bits, block=True) == ["bit 3", "FLUSH", "VERSION_1", "bit 63"]
    assert features.feature_names(1 << 9, block=False) == ["bit 9"]
    assert features.protocol_names(0x8009) == ["MQ", "REPLY_ACK", "CONFIGURE_MEM_SLOTS"]
    assert features.protocol_names(0) == []


def test_fields_stand_where_the_standard_puts_them() -> None:
    """VIRTIO 1.3, "Block Device", "Device configuration layout"."""
    config = bytes(range(1, LENGTH + 1))
    names = ["SEG_MAX", "TOPOLOGY", "CONFIG_WCE", "MQ", "DISCARD", "WRITE_ZEROES"]
    assert decode(config, names) == {
        "size": 0x0807060504030201 * 512,
        "capacity_sectors": 0x0807060504030201,
        "seg_max": 0x100F0E0D,
        "physical_block_exp": 25,
        "alignment_offset": 26,
        "min_io_size": 0x1C1B,
        "opt_io_size": 0x201F1E1D,
        "writeback": 33,
        "num_queues": 0x2423,
        "max_discard_sectors": 0x28272625,
        "max_discard_seg": 0x2C2B2A29,
        "discard_sector_alignment": 0x302F2E2D,
        "max_write_zeroes_sectors": 0x34333231,
        "max_write_zeroes_seg": 0x38373635,
        "write_zeroes_may_unmap": 57,
    }


def test_a_short_configuration_is_decoded_as_far_as_it_goes() -> None:
    assert decode(bytes([8]) + bytes(7), ["MQ"]) == {"size": 4096, "capacity_sectors": 8}
    assert decode(b"", []) == {"size": 0}
