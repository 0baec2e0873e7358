"""Feature bits and their names."""

PROTOCOL = {
    0: "MQ",
    1: "LOG_SHMFD",
    2: "RARP",
    3: "REPLY_ACK",
    4: "MTU",
    5: "BACKEND_REQ",
    6: "CROSS_ENDIAN",
    7: "CRYPTO_SESSION",
    8: "PAGEFAULT",
    9: "CONFIG",
    10: "BACKEND_SEND_FD",
    11: "HOST_NOTIFIER",
    12: "INFLIGHT_SHMFD",
    13: "RESET_DEVICE",
    14: "INBAND_NOTIFICATIONS",
    15: "CONFIGURE_MEM_SLOTS",
    16: "STATUS",
    17: "XEN_MMAP",
    18: "SHARED_OBJECT",
    19: "DEVICE_STATE",
    20: "GET_VRING_BASE_INFLIGHT",
    21: "GPA_ADDRESSES",
    22: "SHMEM",
}
"""QEMU "Vhost-user Protocol", "Protocol features"."""

COMMON = {
    24: "NOTIFY_ON_EMPTY",
    26: "LOG_ALL",
    27: "ANY_LAYOUT",
    28: "INDIRECT_DESC",
    29: "EVENT_IDX",
    30: "PROTOCOL_FEATURES",
    32: "VERSION_1",
    33: "ACCESS_PLATFORM",
    34: "RING_PACKED",
    35: "IN_ORDER",
    36: "ORDER_PLATFORM",
    37: "SR_IOV",
    38: "NOTIFICATION_DATA",
    39: "NOTIF_CONFIG_DATA",
    40: "RING_RESET",
}
"""VIRTIO 1.3, "Reserved Feature Bits" and "Legacy Interface: Reserved Feature Bits", and vhost's
two."""

BLOCK = {
    0: "BARRIER",
    1: "SIZE_MAX",
    2: "SEG_MAX",
    4: "GEOMETRY",
    5: "RO",
    6: "BLK_SIZE",
    7: "SCSI",
    9: "FLUSH",
    10: "TOPOLOGY",
    11: "CONFIG_WCE",
    12: "MQ",
    13: "DISCARD",
    14: "WRITE_ZEROES",
    15: "LIFETIME",
    16: "SECURE_ERASE",
    17: "ZONED",
}
"""VIRTIO 1.3, "Block Device", "Feature bits"."""


def protocol_names(bits: int) -> list[str]:
    """The protocol features in ``bits``."""
    return _names(bits, PROTOCOL)


def feature_names(bits: int, *, block: bool) -> list[str]:
    """The features in ``bits``; with those of block devices if it is one."""
    return _names(bits, {**(BLOCK if block else {}), **COMMON})


def _names(bits: int, table: dict[int, str]) -> list[str]:
    """Names of the bits that are set, lowest first; ``bit N`` for those without one."""
    return [table.get(n, f"bit {n}") for n in range(bits.bit_length()) if bits >> n & 1]
