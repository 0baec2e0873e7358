"""What a Linux guest sees of a device written in Python that fails."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import vhost_user as vu

from .conftest import Boot
from .rig.machine import Device, GuestError
from .rig.packages import OLDEST

RUN_WITH = (OLDEST,)

BLOCK_BYTES = 4096
BLOCKS = 1024
BAD_BLOCK = 100
BUGGY_BLOCK = 200


class BadDisk(vu.BlockDevice):
    """Zeroes, but for one block that cannot be read and one at which the code has a bug."""

    def __init__(self) -> None:
        super().__init__(size=BLOCKS * BLOCK_BYTES, read_only=True)

    def read(self, offset: int, buf: memoryview) -> None:
        blocks = range(offset // BLOCK_BYTES, (offset + len(buf) - 1) // BLOCK_BYTES + 1)
        if BAD_BLOCK in blocks:
            raise OSError(errno.EIO, "unreadable")
        if BUGGY_BLOCK in blocks:
            raise ZeroDivisionError
        buf[:] = bytes(len(buf))


def test_a_block_that_fails_leaves_the_others_readable(boot: Boot, socket_path: Path) -> None:
    with vu.Backend(BadDisk(), socket=socket_path, on_error="report"):
        guest = boot(Device(model="vhost-user-blk-pci", socket=socket_path))
        for block in (BAD_BLOCK, BUGGY_BLOCK):
            with pytest.raises(GuestError, match="I/O error"):
                guest.sh(_read(block))
            guest.sh(_read(block + 1) + f" && cmp -n {BLOCK_BYTES} /tmp/block /dev/zero")


def _read(block: int) -> str:
    return f"dd if=/dev/vda of=/tmp/block bs={BLOCK_BYTES} skip={block} count=1 iflag=direct"
