"""Device types and their names."""

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
    18: "input",
    19: "vsock",
    20: "crypto",
    25: "sound",
    26: "fs",
    32: "scmi",
    34: "i2c",
    36: "can",
    41: "gpio",
    45: "spi",
}
"""Names by number (VIRTIO 1.3, "Device Types"), as QEMU's ``docs/interop/vhost-user.json`` spells
them where it knows the type."""

BLOCK = 2


def type_name(device_id: int) -> str:
    """The type's name, or ``type N`` for one without a name here."""
    return NAMES.get(device_id, f"type {device_id}")
