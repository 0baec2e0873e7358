"""A Linux guest on ``vhost-user blk``: a file served with two queues."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .command import BlkCommand
from .conftest import Boot
from .filesystem import Ext4Image
from .rig.machine import Device, GuestError, Machine
from .rig.packages import Packages

PART_BYTES = 4 << 20
MODEL = "vhost-user-blk-pci,num-queues=2"


@pytest.fixture
def command(image: Path, socket_path: Path, request: pytest.FixtureRequest) -> Iterator[BlkCommand]:
    """The command, started; parametrized with more options by the tests that need them."""
    options = getattr(request, "param", ())
    command = BlkCommand(image, socket_path, "--num-queues", "2", *options)
    try:
        command.start()
        yield command
    finally:
        command.kill()


@pytest.fixture
def device(command: BlkCommand) -> Device:
    return Device(model=MODEL, socket=command.socket)


def test_each_processor_uses_its_own_queue(boot: Boot, device: Device, image: Path) -> None:
    guest = boot(device, cpus=2)
    queues = guest.sh("cat /sys/block/vda/mq/*/cpu_list").split()
    assert sorted(queues) == ["0", "1"]
    for queue, processor in enumerate(map(int, queues)):
        before = _interrupts(guest)
        expected = _write_part(guest, processor)
        after = _interrupts(guest)
        assert _part(image, processor) == expected
        assert after[queue] > before[queue]


def test_synced_bytes_are_in_the_file_when_qemu_is_killed(
    boot: Boot, device: Device, image: Path, packages: Packages, tmp_path: Path
) -> None:
    guest = boot(device, cpus=2)
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
    guest.sh("dd if=/dev/urandom of=/tmp/random bs=1M count=6 2>/dev/null")
    digest = guest.sh("sha256sum </tmp/random").split()[0]
    guest.sh("cp /tmp/random /mnt/by-sync && sync")
    guest.sh("dd if=/tmp/random of=/mnt/by-fsync bs=64k conv=fsync 2>/dev/null")
    guest.kill()

    copy = Ext4Image(packages, tmp_path / "copy.img")
    shutil.copyfile(image, copy.path)
    copy.replay()
    files = copy.checksums(tmp_path / "outside")
    assert files["by-sync"] == digest
    assert files["by-fsync"] == digest


def test_a_guest_goes_on_when_its_back_end_was_restarted(boot: Boot, command: BlkCommand) -> None:
    guest = boot(Device(model=MODEL, socket=command.socket, reconnect=True), cpus=2)
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && echo before >/mnt/word && sync")
    command.stop()
    command.start()
    guest.sh("echo after >>/mnt/word && umount /mnt && mount /dev/vda /mnt")
    assert guest.sh("cat /mnt/word") == "before\nafter\n"


@pytest.mark.parametrize("command", [["--read-only"]], indirect=True)
def test_the_guest_cannot_write_to_a_disk_served_read_only(
    boot: Boot, device: Device, image: Path
) -> None:
    guest = boot(device)
    assert guest.sh("cat /sys/block/vda/ro") == "1\n"
    with pytest.raises(GuestError, match="Operation not permitted"):
        guest.sh("echo word >/dev/vda")
    assert not any(image.read_bytes())


def test_the_command_ends_by_sigterm_while_a_guest_uses_it(
    boot: Boot, command: BlkCommand, device: Device
) -> None:
    guest = boot(device)
    guest.sh("dd if=/dev/zero of=/dev/vda bs=1M count=60 2>/dev/null")
    command.stop()
    assert not command.socket.exists()


def _write_part(guest: Machine, processor: int) -> str:
    """Write a part of the disk from one processor past all caches; return its SHA-256."""
    blocks = PART_BYTES >> 16
    guest.sh(f"dd if=/dev/urandom of=/tmp/part bs=64k count={blocks} 2>/dev/null")
    guest.sh(
        f"taskset {1 << processor:x} dd if=/tmp/part of=/dev/vda bs=64k "
        f"seek={blocks * processor} oflag=direct conv=fsync 2>/dev/null"
    )
    return guest.sh("sha256sum </tmp/part").split()[0]


def _part(image: Path, number: int) -> str:
    with image.open("rb") as file:
        file.seek(number * PART_BYTES)
        return hashlib.sha256(file.read(PART_BYTES)).hexdigest()


def _interrupts(guest: Machine) -> list[int]:
    """How many interrupts each queue has raised, on all processors."""
    lines = guest.sh("grep 'virtio0-req' /proc/interrupts").splitlines()
    return [sum(int(count) for count in re.findall(r"\s(\d+)(?=\s)", line)) for line in lines]
