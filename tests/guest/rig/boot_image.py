"""A disk from which a guest boots: GRUB for both kinds of firmware, the kernel and its initramfs.

The first sectors are laid out as GRUB's installer does for a BIOS: ``boot.img`` in sector 0, the
core image behind it. An EFI firmware finds its loader by name in the first partition. Both read the
rest from there.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from pathlib import Path

from .initramfs import build
from .machine import KERNEL_ARGUMENTS
from .packages import Packages

SECTOR_BYTES = 512
SYSTEM_START, SYSTEM_SECTORS = 2048, 64 << 11
DATA_START, DATA_SECTORS = SYSTEM_START + SYSTEM_SECTORS, 4 << 11
"""Sectors of the two partitions: EFI's, with all that is booted, and one for bytes of the tests."""

EFI_SYSTEM, LINUX = 0xEF, 0x83
BOOT_CODE_BYTES = 440
PARTITION_TABLE_AT = 446
PARTITION = struct.Struct("<8B2I")  # status, place as C/H/S, type, place as C/H/S; start, sectors

MODULES = ("part_msdos", "fat", "linux", "search", "search_fs_file", "normal", "boot")
SCRIPT_BYTES = 1 << 16
CONFIGURATION = """\
search --no-floppy --file --set=root /vmlinuz
linux /vmlinuz {arguments}
initrd /initramfs.cpio
boot
"""


class BootImage:
    """Makes the image at ``path`` with the tools of ``packages``, in a directory of its own.

    The guest carries out ``script``, if there is one, instead of waiting for scripts.
    """

    def __init__(self, packages: Packages, path: Path, script: str = "") -> None:
        self._packages = packages
        self._directory = path.parent
        self.path = path
        arguments = f"{KERNEL_ARGUMENTS} autorun" if script else KERNEL_ARGUMENTS
        (self._directory / "grub.cfg").write_text(CONFIGURATION.format(arguments=arguments))
        core = self._grub("i386-pc", "biosdisk").read_bytes()
        loader = self._grub("x86_64-efi")
        boot = (packages.root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
        with path.open("wb") as file:
            file.write(boot[:BOOT_CODE_BYTES])
            file.seek(PARTITION_TABLE_AT)
            file.write(_partition(EFI_SYSTEM, SYSTEM_START, SYSTEM_SECTORS))
            file.write(_partition(LINUX, DATA_START, DATA_SECTORS))
            file.seek(SECTOR_BYTES - 2)
            file.write(b"\x55\xaa" + core)
            assert file.tell() <= SYSTEM_START * SECTOR_BYTES, "GRUB does not fit"
            file.seek(DATA_START * SECTOR_BYTES)
            file.write(random.Random(1).randbytes(DATA_SECTORS * SECTOR_BYTES))
            if script:
                file.seek(DATA_START * SECTOR_BYTES)
                file.write(script.encode().ljust(SCRIPT_BYTES, b"\n"))
        self._fill_system_partition(loader)

    def _fill_system_partition(self, loader: Path) -> None:
        packages = self._packages
        self._mtools("mformat", "-T", str(SYSTEM_SECTORS), "-h", "255", "-s", "63", "::")
        self._mtools("mmd", "::/EFI", "::/EFI/BOOT")
        self._mtools("mcopy", str(loader), "::/EFI/BOOT/BOOTX64.EFI")
        self._mtools("mcopy", str(packages.kernel), "::/vmlinuz")
        self._mtools("mcopy", str(build(packages)), "::/initramfs.cpio")

    def _grub(self, platform: str, *modules: str) -> Path:
        """GRUB's core image for ``platform``, with its configuration in it."""
        output = self._directory / platform
        modules_at = self._packages.root / "usr/lib/grub" / platform
        words = ["--directory", str(modules_at), "--format", platform, "--prefix", "/boot/grub"]
        words += ["--config", str(self._directory / "grub.cfg"), "--output", str(output)]
        self._run("usr/bin/grub-mkimage", *words, *MODULES, *modules)
        return output

    def _mtools(self, command: str, *words: str) -> None:
        place = f"{self.path}@@{SYSTEM_START * SECTOR_BYTES}"
        self._run("usr/bin/mtools", "-c", command, "-i", place, *words)

    def _run(self, program: str, *words: str) -> None:
        command = [*self._packages.program(program), *words]
        environment = os.environ | {"MTOOLS_SKIP_CHECK": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{program} {words} ended with {done.returncode}: {done.stderr}")


def _partition(kind: int, start: int, sectors: int) -> bytes:
    """One entry of the partition table, whose cylinders, heads and sectors nobody reads."""
    return PARTITION.pack(0, 0xFE, 0xFF, 0xFF, kind, 0xFE, 0xFF, 0xFF, start, sectors)
