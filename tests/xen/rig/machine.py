"""One QEMU process with Xen in it, and dom0's results.

dom0 prints its results on the console, as that is the one way out which all kinds of dom0 have.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.unpack import unpacked

from .kernel import extract
from .packages import NEW, OLD, STABLE, Emulator, Packages, Release

MEMORY_MIB = 1024
DOM0_MEMORY = "dom0_mem=512M,max:512M"
TRANSLATOR = "tcg,thread=multi,tb-size=256"

PROCESSOR = "EPYC,-smap,-smep,-rdtscp,-monitor"
"""What QEMU 7.2 emulates wrongly for Xen is left out: SMAP makes the IRET of a PV kernel fault,
RDTSCP is reported to the hypervisor as RDTSC, and MWAIT refuses the hints of Xen's idle loop."""

WITHOUT_XSAVE = f"{PROCESSOR},-xsave"
"""Linux 7.3 as PVH dom0 does not start with it."""

KERNEL_ARGUMENTS = "console=hvc0 quiet panic=-1"
KERNEL_ADDRESS = 0x4A00_0000
IMAGE_ADDRESS = 0x4E00_0000
"""Where dom0's kernel and initramfs lie in the memory of the Arm machine, which starts at 1 GiB."""

RESULTS = re.compile(r"^XEN-RIG-RESULTS\n(.*)^XEN-RIG-STATUS (\d+)$", re.MULTILINE | re.DOTALL)


class MachineError(Exception):
    """Xen or dom0 crashed, went silent, or printed no results."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What dom0's script ended with, and the files that it left in ``/results``."""

    status: int
    files: dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of dom0. A PVH dom0 needs an IOMMU, so it has another board."""

    name: str
    release: Release
    architecture: str
    board: tuple[str, ...]
    hypervisor_arguments: str

    def boot(self, packages: Packages, image: Path) -> list[str]:
        """QEMU's options for the board, the hypervisor and dom0."""
        if self.architecture == "amd64":
            return self._boot_from_modules(packages, image)
        return self._boot_from_device_tree(packages, image)

    def _boot_from_modules(self, packages: Packages, image: Path) -> list[str]:
        hypervisor, kernel = _unpacked(packages)
        modules = f"{kernel} {KERNEL_ARGUMENTS},{image}"
        return [*self.board, *self._hypervisor(hypervisor), "-initrd", modules]

    def _boot_from_device_tree(self, packages: Packages, image: Path) -> list[str]:
        kernel = f"kernel={packages.kernel},bootargs={KERNEL_ARGUMENTS}"
        return [
            *self.board,
            *self._hypervisor(packages.hypervisor),
            *("-device", f"guest-loader,addr={KERNEL_ADDRESS:#x},{kernel}"),
            *("-device", f"guest-loader,addr={IMAGE_ADDRESS:#x},initrd={image}"),
        ]

    def _hypervisor(self, path: Path) -> list[str]:
        return ["-kernel", str(path), "-append", f"{self.hypervisor_arguments} {DOM0_MEMORY}"]


def _paravirtual(name: str, release: Release) -> Kind:
    return Kind(
        name=name,
        release=release,
        architecture="amd64",
        board=("-machine", "pc", "-cpu", PROCESSOR),
        hypervisor_arguments="com1=115200,8n1 console=com1",
    )


def _hardware_assisted(name: str, release: Release, processor: str = PROCESSOR) -> Kind:
    return Kind(
        name=name,
        release=release,
        architecture="amd64",
        board=("-machine", "q35", "-cpu", processor, "-device", "intel-iommu"),
        hypervisor_arguments="com1=115200,8n1 console=com1 dom0=pvh",
    )


def _arm(name: str, release: Release) -> Kind:
    return Kind(
        name=name,
        release=release,
        architecture="arm64",
        board=("-machine", "virt,virtualization=on,gic-version=2", "-cpu", "cortex-a53"),
        hypervisor_arguments="console=dtuart dtuart=/pl011@9000000",
    )


PV = _paravirtual("4.17-pv", OLD)
PVH = _hardware_assisted("4.17-pvh", OLD)
ARM = _arm("4.17-arm", OLD)
STABLE_PV = _paravirtual("4.20-stable-pv", STABLE)
STABLE_PVH = _hardware_assisted("4.20-stable-pvh", STABLE)
STABLE_ARM = _arm("4.20-stable-arm", STABLE)
NEW_PV = _paravirtual("4.20-pv", NEW)
NEW_PVH = _hardware_assisted("4.20-pvh", NEW, WITHOUT_XSAVE)

KINDS = (PV, NEW_PVH, ARM)
"""Booted by ``make test-xen``: the oldest and the newest, and each of what the kernel's drivers
tell apart."""

MORE_KINDS = (PVH, NEW_PV, STABLE_PV, STABLE_PVH, STABLE_ARM)
"""Booted by ``make test-xen-all`` too."""


def run(
    kind: Kind,
    packages: Packages,
    emulator: Emulator,
    image: Path,
    console: Path,
    *,
    seconds: float,
) -> Results:
    """Boot, let dom0 run its script, and take its results; ``console`` keeps what was printed.

    ``MachineError`` when there are no results within ``seconds``.
    """
    command = [*emulator.command, *_base(), *kind.boot(packages, image)]
    log = console.with_name("qemu.log")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, "-serial", f"file:{console}"],
            env=emulator.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise _failure(f"no end in {seconds} s", console, log) from None
        finally:
            process.kill()
            process.wait()
    found = RESULTS.search(console.read_text(errors="replace").replace("\r", ""))
    if found is None:
        raise _failure(f"QEMU ended with {process.returncode}, without results", console, log)
    try:
        return Results(status=int(found[2]), files=_unpack(found[1]))
    except (ValueError, EOFError, binascii.Error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise _failure(f"the results are damaged: {error}", console, log) from None


def _base() -> Sequence[str]:
    return (
        *("-accel", TRANSLATOR, "-smp", "1", "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    )


def _unpacked(packages: Packages) -> tuple[Path, Path]:
    """The hypervisor and dom0's kernel as QEMU and Xen load them fastest; made once."""
    made = []
    for name, source, unpack in (
        ("xen", packages.hypervisor, unpacked),
        ("vmlinux", packages.kernel, extract),
    ):
        path = packages.directory / name
        if not _is_newer(path, packages.manifests):
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(unpack(source.read_bytes()))
            os.replace(partial, path)
        made.append(path)
    return made[0], made[1]


def _is_newer(path: Path, others: Sequence[Path]) -> bool:
    """Whether ``path`` is there, and was made after ``others``."""
    return path.exists() and all(path.stat().st_mtime > o.stat().st_mtime for o in others)


def _unpack(text: str) -> dict[str, bytes]:
    packed = gzip.decompress(base64.b64decode(text, validate=False))
    files = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()
    return files


def _failure(words: str, console: Path, log: Path, *, size: int = 4000) -> MachineError:
    parts = [words]
    for path in (console, log):
        text = path.read_bytes()[-size:].decode(errors="replace") if path.exists() else ""
        parts.append(f"--- {path} ---\n{text.replace(chr(13), '')}")
    return MachineError("\n".join(parts))
