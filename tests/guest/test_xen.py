"""An ordinary machine on back-ends that serve Xen as well, one for each design of XEN_MMAP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import vhost_user as vu

from .conftest import Boot
from .disk import DISK_BYTES, RamDisk
from .rig.machine import Device

DESIGNS: tuple[Literal["auto", "merged", "review", "message"], ...] = (
    "auto",
    "merged",
    "review",
    "message",
)


def test_an_ordinary_machine_is_served_in_every_design(boot: Boot, socket_path: Path) -> None:
    """QEMU 7.2 does not accept XEN_MMAP; from 10.0 on it does, and sends plain regions still."""
    with ExitStack() as backends:
        disks = {name: RamDisk(DISK_BYTES) for name in ("vda", "vdb", "vdc", "vdd")}
        devices = []
        for design, disk in zip(DESIGNS, disks.values(), strict=True):
            path = socket_path.with_name(f"{design}.sock")
            options = vu.XenOptions(design=design)
            backends.enter_context(vu.Backend(disk, socket=path, xen=options))
            devices.append(Device(model="vhost-user-blk-pci", socket=path))
        guest = boot(*devices)
        for name, disk in disks.items():
            guest.sh(f"echo {name} >/dev/{name} && sync && echo 3 >/proc/sys/vm/drop_caches")
            assert guest.sh(f"head -n 1 /dev/{name}") == f"{name}\n"
            assert bytes(disk.mem[:4]) == f"{name}\n".encode()
