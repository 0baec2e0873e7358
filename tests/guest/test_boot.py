"""A guest whose firmware, boot loader and kernel come from, and read, a disk of ours alone."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import vhost_user as vu

from .conftest import Boot
from .disk import RamDisk
from .rig.boot_image import DATA_SECTORS, DATA_START, SECTOR_BYTES, BootImage
from .rig.machine import Device
from .rig.packages import NEWEST, Packages

RUN_WITH = (NEWEST,)
DATA = slice(DATA_START * SECTOR_BYTES, (DATA_START + DATA_SECTORS) * SECTOR_BYTES)
WRITTEN_BYTES = 1 << 20

ROOT_PORT = ["-device", "pcie-root-port,id=root0"]
SLOTS = {
    "ordinary": ("vhost-user-blk-pci", []),
    "without-legacy": ("vhost-user-blk-pci,disable-legacy=on", []),
    "root-port": ("vhost-user-blk-pci,bus=root0", ROOT_PORT),
    "packed": ("vhost-user-blk-pci,packed=on,in_order=on", []),
}
"""Where the disk is plugged in, and what QEMU must be told of the place. In the ordinary slot the
disk has the legacy interface too, and OVMF drives it by that, as Linux does not. SeaBIOS drives a
disk with packed rings by a split one, on the connection on which Linux then has packed ones.
"""


@pytest.fixture(scope="session")
def image(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BootImage(packages, tmp_path_factory.mktemp("boot") / "boot.img").path


@pytest.fixture
def firmware(packages: Packages, tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """QEMU's options for the firmware that the test names. SeaBIOS is there without any."""
    if request.param == "SeaBIOS":
        return []
    code, variables = (packages.root / f"usr/share/OVMF/OVMF_{n}_4M.fd" for n in ("CODE", "VARS"))
    kept = shutil.copy(variables, tmp_path / "variables.fd")
    flash = "if=pflash,format=raw"
    return ["-drive", f"{flash},readonly=on,file={code}", "-drive", f"{flash},file={kept}"]


@pytest.fixture
def disk(image: Path) -> RamDisk:
    disk = RamDisk(image.stat().st_size)
    disk.mem[:] = image.read_bytes()
    return disk


@pytest.mark.parametrize(
    ("firmware", "slot"),
    [
        ("SeaBIOS", "ordinary"),
        ("SeaBIOS", "packed"),
        ("OVMF", "ordinary"),
        ("OVMF", "without-legacy"),
        ("OVMF", "root-port"),
    ],
    indirect=["firmware"],
)
def test_a_guest_boots_from_the_disk_and_reads_and_writes_every_byte(
    boot: Boot, socket_path: Path, disk: RamDisk, firmware: list[str], slot: str
) -> None:
    model, more = SLOTS[slot]
    with vu.Backend(disk, socket=socket_path):
        device = Device(model=model, socket=socket_path)
        guest = boot(device, options=[*firmware, *more], from_disk=True)
        assert ("efi" in guest.sh("ls /sys/firmware")) == bool(firmware)
        assert guest.sh("sha256sum </dev/vda").split()[0] == _digest(disk.mem)

        before, behind = bytes(disk.mem[: DATA.start]), bytes(disk.mem[DATA][WRITTEN_BYTES:])
        guest.sh(f"head -c {WRITTEN_BYTES} /dev/urandom >/tmp/written")
        digest = guest.sh("sha256sum </tmp/written").split()[0]
        guest.sh("dd if=/tmp/written of=/dev/vda2 bs=64k conv=fsync 2>/dev/null")
        assert _digest(disk.mem[DATA][:WRITTEN_BYTES]) == digest
        assert bytes(disk.mem[: DATA.start]) == before
        assert bytes(disk.mem[DATA][WRITTEN_BYTES:]) == behind


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
