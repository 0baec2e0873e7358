"""A Linux guest whose devices sit behind an emulated IOMMU: each request's pages are mapped for the
device before it and unmapped after it, and the back-end asks for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from .command import BlkCommand
from .conftest import Boot
from .rig.machine import Device, Machine
from .rig.packages import Packages, is_newest

IOMMU = ("-device", "intel-iommu,device-iotlb=on,intremap=on")
STRICT = "intel_iommu=on iommu.strict=1"
BEHIND = "iommu_platform=on,ats=on,disable-legacy=on"

WRITE_AND_READ = """
dd if=/dev/urandom of=/tmp/random bs=64k count=48 2>/dev/null
sha256sum </tmp/random
for n in 0 1 2 3; do
    taskset $((1 << n % 2)) dd if=/tmp/random of=/dev/vda bs=$((4096 << n)) \\
        seek=$((n * 1024 >> n)) oflag=direct conv=fsync 2>/dev/null &
done
wait
echo 3 >/proc/sys/vm/drop_caches
for n in 0 1 2 3; do
    dd if=/dev/vda bs=64k skip=$((n * 64)) count=48 iflag=direct 2>/dev/null | sha256sum
done
"""
"""Writes one random pattern to four places at once, in blocks of 4 to 32 KiB and from both
processors, and reads each with requests of 64 KiB."""


@pytest.fixture
def command(image: Path, socket_path: Path) -> Iterator[BlkCommand]:
    command = BlkCommand(image, socket_path, "--num-queues", "2")
    try:
        command.start()
        yield command
    finally:
        command.kill()


def _boot(boot: Boot, command: BlkCommand, packages: Packages) -> Machine:
    """The descriptors of its rings have four pages, which may lie anywhere."""
    rings = "packed=on,in_order=on" if is_newest(packages) else "packed=off"
    model = f"vhost-user-blk-pci,num-queues=2,queue-size=1024,{rings},{BEHIND}"
    device = Device(model=model, socket=command.socket)
    return boot(device, cpus=2, options=IOMMU, kernel_arguments=STRICT)


def test_a_disk_behind_an_iommu_is_right_byte_for_byte(
    boot: Boot, command: BlkCommand, image: Path, packages: Packages
) -> None:
    guest = _boot(boot, command, packages)
    assert "virtio0" in guest.sh("ls /sys/bus/virtio/devices")
    bits = guest.sh("cat /sys/bus/virtio/devices/virtio0/features").strip()
    assert bits[33] == "1", "the driver did not accept ACCESS_PLATFORM"
    assert (bits[34] == bits[35] == "1") == is_newest(packages), "RING_PACKED and IN_ORDER"
    assert "DMA" in guest.sh("cat /sys/kernel/iommu_groups/*/type")
    written, *read = guest.sh(WRITE_AND_READ, seconds=120).splitlines()
    assert read == [written] * 4
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && cp -a /bin /lib /mnt && sync")
    inside = guest.sh("cd /mnt && find . -type f | sort | xargs sha256sum | sha256sum")
    guest.sh("umount /mnt && mount -o ro /dev/vda /mnt")
    assert guest.sh("cd /mnt && find . -type f | sort | xargs sha256sum | sha256sum") == inside
    guest.sh("umount /mnt")
    digest = guest.sh("sha256sum </dev/vda", seconds=120).split()[0]
    guest.power_off()
    assert hashlib.sha256(image.read_bytes()).hexdigest() == digest
