"""The program that verifies a disk finds what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import vhost_user as vu

from .conftest import Boot
from .disk import DISK_BYTES, RamDisk
from .rig.machine import Device, GuestError
from .rig.packages import NEWEST
from .verifier import Verifier

RUN_WITH = (NEWEST,)


class Forgetful(RamDisk):
    """Forgets what is written, once it is told to."""

    forgets = False

    def write(self, offset: int, buf: memoryview, /) -> None:
        if not self.forgets:
            super().write(offset, buf)


def test_the_program_finds_what_a_disk_has_lost(
    boot: Boot, socket_path: Path, tmp_path: Path
) -> None:
    disk, image = Forgetful(DISK_BYTES), tmp_path / "disk.img"
    with vu.Backend(disk, socket=socket_path):
        guest = boot(Device(model="vhost-user-blk-pci", socket=socket_path))
        verifier = Verifier(guest)
        verifier.wait_progress(guest, 100)
        verifier.end(guest)
        image.write_bytes(disk.mem)
        verifier.check(guest, image)
        with image.open("r+b") as file:
            file.write(b"x")
        with pytest.raises(AssertionError, match="block 0, written"):
            verifier.check(guest, image)

        verifier = Verifier(guest)
        disk.forgets = True
        with pytest.raises(GuestError, match=r"block \d+, written \d+ times, has 0x"):
            verifier.end(guest)
