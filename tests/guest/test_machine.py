"""What a virtual machine does to its devices while it runs: each changes the vhost-user session."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import vhost_user as vu

from .conftest import Boot
from .disk import DISK_BYTES, RamDisk
from .rig.machine import Device, Machine

PATTERN_BYTES = 8 << 20
PAUSES = 20


def test_no_request_is_lost_when_the_machine_pauses(
    boot: Boot, device: Device, disk: RamDisk
) -> None:
    guest = boot(device)
    expected = _make_pattern(guest)
    # More requests than the ring has entries, so that a base that is forgotten shows.
    guest.sh("dd if=/dev/zero of=/dev/vda bs=4k count=600 oflag=direct 2>/dev/null")
    guest.sh("(dd if=/tmp/pattern of=/dev/vda bs=4k oflag=direct && touch /tmp/done) &")
    for _ in range(PAUSES):
        guest.pause()
        guest.resume()
    guest.sh("until test -e /tmp/done; do usleep 1000; done")
    assert _digest(disk) == expected


def test_a_cache_that_the_guest_turned_off_stays_off_when_the_machine_pauses(
    boot: Boot, socket_path: Path
) -> None:
    disk = FlushCounter(DISK_BYTES)
    with vu.Backend(disk, socket=socket_path):
        guest = boot(Device(model="vhost-user-blk-pci", socket=socket_path))
        guest.sh("echo 'write through' >/sys/block/vda/cache_type")
        guest.pause()
        guest.resume()
        assert guest.sh("cat /sys/block/vda/cache_type") == "write through\n"
        before = disk.flushes
        guest.sh("dd if=/dev/zero of=/dev/vda bs=4k count=20 oflag=direct 2>/dev/null")
        assert disk.flushes >= before + 20


def test_memory_plugged_while_running_carries_requests(
    boot: Boot, device: Device, disk: RamDisk
) -> None:
    guest = boot(device)
    block = guest.plug_memory()
    # Linux takes pages that it can move, like those of a file, from this memory first.
    guest.sh(f"echo online_movable >{block}/state")
    expected = _make_pattern(guest)
    guest.sh("dd if=/tmp/pattern of=/dev/vda bs=1M oflag=direct 2>/dev/null")
    assert _digest(disk) == expected

    guest.sh(f"echo offline >{block}/state")
    guest.unplug_memory()
    guest.sh("echo 3 >/proc/sys/vm/drop_caches")
    assert guest.sh(f"head -c {PATTERN_BYTES} /dev/vda | sha256sum").split()[0] == expected


def test_the_driver_can_leave_the_device_and_come_back(boot: Boot, device: Device) -> None:
    guest = boot(device)
    guest.sh("echo mark >/dev/vda && sync")
    guest.sh("cd /sys/bus/virtio/drivers/virtio_blk && echo virtio0 >unbind")
    assert guest.sh("ls /sys/block") == ""
    guest.sh("cd /sys/bus/virtio/drivers/virtio_blk && echo virtio0 >bind")
    assert guest.sh("head -n 1 /dev/vda") == "mark\n"
    assert int(guest.sh("cat /sys/block/vda/size")) * 512 == DISK_BYTES


@pytest.mark.parametrize("driver", ["virtio_blk", "virtio_rng"])
def test_a_device_hears_of_its_drivers_resets_and_not_of_pauses(
    boot: Boot, socket_path: Path, driver: str
) -> None:
    kind, model, use = {
        "virtio_blk": (ResettableDisk, "blk", "dd if=/dev/vda of=/dev/null bs=4k count=9"),
        "virtio_rng": (ResettableRng, "rng", "dd if=/dev/hwrng of=/dev/null bs=64 count=9"),
    }[driver]
    device = kind()
    with vu.Backend(device, socket=socket_path):
        guest = boot(Device(model=f"vhost-user-{model}-pci", socket=socket_path))
        guest.sh(f"{use} 2>/dev/null")
        at_start = device.resets
        for resets in range(3):
            for _ in range(2):
                guest.pause()
                guest.resume()
                guest.sh(f"{use} 2>/dev/null")
            assert device.resets == at_start + resets
            guest.sh(f"cd /sys/bus/virtio/drivers/{driver} && echo virtio0 >unbind")
            guest.sh(f"cd /sys/bus/virtio/drivers/{driver} && echo virtio0 >bind")
            guest.sh(f"{use} 2>/dev/null")
            assert device.resets == at_start + resets + 1
        # Firmware and kernel come one after the other: how many resets that is, is theirs to say.
        guest.reboot()
        guest.sh(f"{use} 2>/dev/null")
        assert device.resets > at_start + 3


class ResettableDisk(RamDisk):
    """Counts its resets."""

    resets = 0

    def __init__(self) -> None:
        super().__init__(DISK_BYTES)

    def on_reset(self) -> None:
        self.resets += 1


class ResettableRng(vu.Rng):
    """Counts its resets."""

    resets = 0

    def on_reset(self) -> None:
        self.resets += 1


class FlushCounter(RamDisk):
    """Has a cache to flush, as the driver sees it."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1


def _make_pattern(guest: Machine) -> str:
    """Fill a file in the guest's memory with random bytes; return their SHA-256."""
    guest.sh(f"head -c {PATTERN_BYTES} /dev/urandom >/tmp/pattern")
    return guest.sh("sha256sum </tmp/pattern").split()[0]


def _digest(disk: RamDisk) -> str:
    return hashlib.sha256(disk.mem[:PATTERN_BYTES]).hexdigest()
