"""What `vhost-user snippet` prints for QEMU is read by QEMU; test_libvirt.py has libvirt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import vhost_user as vu
from docs.stand_in import stand_in

from .conftest import Boot
from .disk import RamDisk
from .rig.machine import Device, environment, module_directory
from .rig.packages import FIRMWARE_DIRECTORIES, Packages
from .test_rng import Entropy

COMMAND = Path(sys.executable).with_name("vhost-user")
LIMIT = 60.0


@pytest.fixture
def qemu(packages: Packages, tmp_path: Path) -> Path:
    """QEMU as an installed program."""
    words = packages.program("usr/bin/qemu-system-x86_64")
    for directory in FIRMWARE_DIRECTORIES:
        words += ["-L", str(packages.root / directory)]
    return stand_in(tmp_path / "bin", "qemu", words, module_directory(packages))


def snippet(*words: str) -> str:
    done = subprocess.run(
        [COMMAND, "snippet", *words], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def arguments(*words: str) -> list[str]:
    shown = json.loads(snippet(*words, "--json"))
    return list(map(str, shown["arguments"]))


def test_the_lines_for_qemu_give_a_guest_its_disk(
    packages: Packages, qemu: Path, disk: RamDisk, device: Device, boot: Boot
) -> None:
    words = arguments(str(device.socket), "--for", "qemu", "--program", str(qemu))
    assert any(packages.redial in word for word in words)
    guest = boot(options=words)
    assert guest.sh("cat /sys/block/vda/size") == f"{disk.size // 512}\n"
    guest.sh("echo hello | dd of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null")
    assert bytes(disk.mem[:6]) == b"hello\n"


def test_the_lines_for_qemu_are_pasted_behind_a_command(
    packages: Packages, qemu: Path, device: Device
) -> None:
    lines = snippet(str(device.socket), "--for", "qemu", "--program", str(qemu))
    talk = '{"execute": "qmp_capabilities"} {"execute": "quit"}'
    done = subprocess.run(
        ["sh", "-c", f"{qemu} -nodefaults -accel tcg -S -display none -qmp stdio {lines}"],
        input=talk,
        env=environment(packages),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_lines_for_qemu_give_a_guest_another_device(
    packages: Packages, qemu: Path, boot: Boot, socket_path: Path
) -> None:
    entropy = Entropy()
    with vu.Backend(entropy, socket=socket_path):
        of = (str(socket_path), "--type", "rng", "--for", "qemu", "--program", str(qemu))
        guest = boot(options=arguments(*of))
        guest.sh("head -c 64 /dev/hwrng >/dev/null")
    assert entropy.given
