"""A Linux guest on the RAM disk of the examples: a block device in ten lines of Python."""

from __future__ import annotations

from pathlib import Path

import vhost_user as vu

from .conftest import Boot
from .disk import DISK_BYTES, SECTOR_BYTES, RamDisk
from .filesystem import Ext4Image
from .rig.machine import Device, Machine
from .rig.packages import Packages

GROWN_BYTES = 96 << 20
MARK = b"end".rjust(SECTOR_BYTES)

FILL = """
mkdir /mnt/tree /mnt/tree/empty
cp -a /bin /lib /sbin /mnt/tree
dd if=/dev/urandom of=/mnt/tree/random bs=64k count=96 2>/dev/null
for n in $(seq 1 300); do echo "$n" >/mnt/tree/small-$n; done
"""
SUMS = "cd /mnt && find . -type f | sort | xargs sha256sum"


def test_a_copied_tree_is_the_same_inside_and_outside_the_guest(
    boot: Boot, device: Device, disk: RamDisk, packages: Packages, tmp_path: Path
) -> None:
    guest = boot(device)
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
    guest.sh(FILL)
    written = guest.sh(SUMS)
    guest.sh("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount -o ro /dev/vda /mnt")
    assert guest.sh(SUMS) == written
    guest.sh("umount /mnt")
    guest.power_off()

    image = Ext4Image(packages, tmp_path / "memory.img")
    image.path.write_bytes(disk.mem)
    image.check()
    assert image.checksums(tmp_path / "outside") == _parse(written)


def test_a_guest_that_reboots_finds_its_data(boot: Boot, device: Device) -> None:
    guest = boot(device)
    first_boot = guest.boot_id
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
    guest.sh("echo before >/mnt/word && umount /mnt")
    guest.reboot()
    assert guest.boot_id != first_boot
    assert guest.sh("mount /dev/vda /mnt && cat /mnt/word") == "before\n"
    guest.sh("echo after >/mnt/word && sync && umount /mnt")


def test_the_next_machine_finds_what_the_last_one_left(boot: Boot, device: Device) -> None:
    first = boot(device)
    first.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
    first.sh("echo first >/mnt/word && umount /mnt")
    first.power_off()
    assert boot(device).sh("mount /dev/vda /mnt && cat /mnt/word") == "first\n"


class CachedDisk(RamDisk):
    """Keeps what a loss of power right after the last flush would leave of its beginning."""

    def __init__(self) -> None:
        super().__init__(DISK_BYTES)
        self.durable = b""

    def flush(self) -> None:
        self.durable = bytes(self.mem[:SECTOR_BYTES])


def test_synced_bytes_are_on_the_disk_before_its_flush(boot: Boot, socket_path: Path) -> None:
    disk = CachedDisk()
    with vu.Backend(disk, socket=socket_path):
        guest = boot(Device(model="vhost-user-blk-pci", socket=socket_path))
        assert guest.sh("cat /sys/block/vda/queue/write_cache") == "write back\n"
        for word in ("first", "second"):
            guest.sh(f"echo {word} >/dev/vda && sync /dev/vda")
            assert disk.durable.startswith(word.encode())


def test_a_running_guest_sees_the_disk_grow(boot: Boot, device: Device, disk: RamDisk) -> None:
    disk.mem = memoryview(bytearray(GROWN_BYTES))  # room for what it will grow to
    guest = boot(device)
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && echo small >/mnt/word")
    assert _size(guest) == DISK_BYTES

    disk.resize(GROWN_BYTES)
    sectors = GROWN_BYTES // SECTOR_BYTES
    guest.sh(f"until grep -qx {sectors} /sys/block/vda/size; do usleep 1000; done")

    guest.sh("resize2fs /dev/vda && dd if=/dev/zero of=/mnt/zeroes bs=1M count=70 && sync")
    assert guest.sh("cat /mnt/word && umount /mnt") == "small\n"
    last = (GROWN_BYTES - len(MARK)) // SECTOR_BYTES
    guest.sh(f"printf %512s end | dd of=/dev/vda bs={SECTOR_BYTES} seek={last} oflag=direct")
    assert disk.mem[-len(MARK) :] == MARK


def _size(guest: Machine) -> int:
    return int(guest.sh("cat /sys/block/vda/size")) * SECTOR_BYTES


def _parse(sums: str) -> dict[str, str]:
    """What ``sha256sum`` printed, by path."""
    lines = (line.split("  ", 1) for line in sums.splitlines())
    return {path.removeprefix("./"): digest for digest, path in lines}
