"""Device types and their names."""

from .parser import did_you_mean

NAMES = {
    1: "net",
    2: "block",
    3: "console",
    4: "rng",
    5: "balloon",
    7: "rpmsg",
    8: "scsi",
    9: "9p",
    11: "rproc-serial",
    12: "caif",
    16: "gpu",
    17: "rtc",
    18: "input",
    19: "vsock",
    20: "crypto",
    23: "iommu",
    25: "sound",
    26: "fs",
    27: "pmem",
    32: "scmi",
    34: "i2c",
    36: "can",
    41: "gpio",
    45: "spi",
}
"""Names by number (VIRTIO 1.3, "Device Types"), as QEMU's ``docs/interop/vhost-user.json`` spells
them where it knows the type."""

BLOCK = 2
NET = 1

OTHER = 0
"""VIRTIO 1.3, "Device Types": no device has this number. A type without a name here."""

_NUMBERS = {**{name: number for number, name in NAMES.items()}, "blk": BLOCK, "other": OTHER}


def type_name(device_id: int) -> str:
    """The type's name, or ``type N`` for one without a name here."""
    return NAMES.get(device_id, f"type {device_id}")


def type_number(name: str) -> int:
    """The number of the type with this name. ``ValueError`` if it is none."""
    if name not in _NUMBERS:
        known = ", ".join(_NUMBERS)
        raise ValueError(f"no device type {name!r}{did_you_mean(name, _NUMBERS) or f': {known}'}")
    return _NUMBERS[name]
