"""Names of feature bits, what they tell of a device's type, and the fields of a block device's
configuration space."""

import pytest
from vhost_user import Frontend
from vhost_user.cli.block_config import LENGTH, decode
from vhost_user.cli.device_types import type_number
from vhost_user.cli.type_guess import guess_type

NET, BLOCK = 1, 2


def test_bits_are_named_from_the_lowest_and_numbered_where_they_have_no_name() -> None:
    bits = 1 << 63 | 1 << 32 | 1 << 9 | 1 << 3
    assert Frontend.feature_names(bits, BLOCK) == ["bit 3", "FLUSH", "VERSION_1", "bit 63"]
    assert Frontend.feature_names(bits, NET) == ["MTU", "GUEST_ECN", "VERSION_1", "SPEED_DUPLEX"]
    assert Frontend.feature_names(1 << 9) == ["bit 9"]
    assert Frontend.feature_names(0, 0xFFFF_FFFF) == []
    assert Frontend.protocol_feature_names(0x8009) == ["MQ", "REPLY_ACK", "CONFIGURE_MEM_SLOTS"]
    assert Frontend.protocol_feature_names(1 << 63) == ["bit 63"]
    assert Frontend.protocol_feature_names(0) == []
    for bits in (-1, 1 << 64):
        with pytest.raises(ValueError, match="bits is a number of 64 bits, not"):
            Frontend.feature_names(bits)


RINGS = 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32


@pytest.mark.parametrize(
    ("bits", "has_config", "number"),
    [
        # Ours, and qemu-storage-daemon's with GEOMETRY, SIZE_MAX and RO.
        (0x7E44, True, BLOCK),
        (0x7E76, True, BLOCK),
        # A zoned one.
        (0x2_7E44, True, BLOCK),
        # One with all offloads and a control queue, one with one bit, ours, one that has a
        # configuration space.
        (0x26_FDAB, False, NET),
        (1 << 15, False, NET),
        (1 << 0 | 1 << 15 | 1 << 17, False, NET),
        (1 << 0 | 1 << 3 | 1 << 7 | 1 << 11 | 1 << 22, True, NET),
        # A SCSI controller, a balloon, an IOMMU, a card without bits, an entropy device.
        (1 << 1 | 1 << 2, True, None),
        (0x3F, True, None),
        (0x4F, True, None),
        (0, False, None),
        # Bits of nobody's.
        (1 << 20 | 1 << 58, False, None),
    ],
)
def test_disks_and_network_devices_are_recognised_by_their_bits(
    bits: int, has_config: bool, number: int | None
) -> None:
    for more in (0, RINGS):
        found = guess_type(bits | more, has_config=has_config, names=Frontend.feature_names)
        assert found == number


def test_types_are_told_by_name() -> None:
    assert [type_number(name) for name in ("net", "blk", "block", "gpio", "other")] == [
        *(1, 2, 2, 41, 0)
    ]
    with pytest.raises(ValueError, match="no device type 'vsok'; did you mean vsock"):
        type_number("vsok")


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
