"""The ELF kernel inside a compressed Linux image for x86.

Xen can unpack the image itself, but takes seconds for it under emulation.
Source: Linux kernel documentation, "The Linux/x86 Boot Protocol".
"""

from __future__ import annotations

import struct

from rig.unpack import unpacked

SECTOR = 512
SETUP_SECTORS = 0x1F1
PAYLOAD = struct.Struct("<II")  # offset after the setup sectors, length
PAYLOAD_FIELD = 0x248


def extract(image: bytes) -> bytes:
    """The kernel that the bzImage ``image`` holds."""
    setup = (image[SETUP_SECTORS] + 1) * SECTOR
    offset, length = PAYLOAD.unpack_from(image, PAYLOAD_FIELD)
    kernel = unpacked(image[setup + offset :][:length])  # its size stands behind it
    if not kernel.startswith(b"\x7fELF"):
        raise ValueError("the kernel image holds no ELF file")
    return kernel
