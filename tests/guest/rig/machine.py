"""One QEMU process and the guest in it.

The guest's console is a file. Scripts go to the guest over its second serial port and come back
with their output; QEMU ends when the guest panics, so that a crash shows as a closed port at
once and never as a test that waits.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rig.deadline import Deadline

from .initramfs import build
from .line_socket import LineSocket
from .packages import FIRMWARE_DIRECTORIES, Packages
from .qmp import Qmp

PLUGGED_BYTES = 128 << 20
PLUGGED_ADDRESS = 4 << 30  # where q35 puts the first module
MEMORY_BLOCK_BYTES = 128 << 20  # what Linux on x86-64 adds and removes at once

BOOT_SECONDS = 120
"""A boot takes about 5 s on an idle machine with two cores."""

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 oops=panic memhp_default_state=offline no_timer_check"
)
"""The last since the kernel cannot tell a machine that waits for its host from a broken timer."""

READY = re.compile(rb"ready ([0-9a-f-]{36})$")
"""What the guest says when it answers scripts, with a number that each boot makes anew."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A vhost-user device of QEMU and the back-end that serves it.

    ``model`` is a value of QEMU's ``-device``, with properties after commas if it needs any.
    ``socket`` is where the back-end listens. With ``reconnect`` QEMU dials again each second
    after it has lost the back-end.
    """

    model: str
    socket: Path
    reconnect: bool = False

    def options(self, number: int, packages: Packages) -> list[str]:
        """The options of QEMU in ``packages`` for it, with ``number`` in the names of its parts."""
        device = f"{self.model},chardev=backend{number},id=device{number}"
        return [*self._socket(number, packages), "-device", device]

    def _socket(self, number: int, packages: Packages) -> list[str]:
        again = f",{packages.redial}" if self.reconnect else ""
        return ["-chardev", f"socket,id=backend{number},path={self.socket}{again}"]


@dataclass(frozen=True, kw_only=True)
class NetworkDevice(Device):
    """A network card of QEMU; what it sends and receives goes through the back-end."""

    model: str = "virtio-net-pci"
    pairs: int = 1

    def options(self, number: int, packages: Packages) -> list[str]:
        network = f"vhost-user,id=network{number},chardev=backend{number},queues={self.pairs}"
        device = f"{self.model},netdev=network{number},id=device{number}"
        if self.pairs > 1:
            device += ",mq=on"
        # No ROM: the firmware would try to boot from the network. No MSI-X: with it and without
        # KVM, QEMU 7.2 ends with SIGSEGV as soon as a driver sets up the vectors.
        device += ",romfile=,vectors=0"
        return [*self._socket(number, packages), "-netdev", network, "-device", device]


class GuestError(Exception):
    """The guest crashed, went silent, or a script in it failed."""


class Machine:
    """A guest with the given vhost-user devices; a context manager that ends QEMU.

    ``directory`` takes ``console.log`` and ``qemu.log``. ``options`` of QEMU come before devices.
    QEMU loads the kernel, that of ``system`` if it is given, with ``kernel_arguments`` behind the
    usual ones, but ``from_disk`` leaves that to the firmware and what it finds. ``machine`` is
    QEMU's name of what it makes: ``q35`` is the newest. With ``incoming`` there is no guest before
    one has come.
    """

    def __init__(
        self,
        packages: Packages,
        directory: Path,
        devices: Sequence[Device],
        *,
        cpus: int = 1,
        memory_mib: int = 256,
        options: Sequence[str] = (),
        kernel_arguments: str = "",
        from_disk: bool = False,
        system: Packages | None = None,
        machine: str = "q35",
        incoming: bool = False,
    ) -> None:
        self.console = directory / "console.log"
        self.log = directory / "qemu.log"
        self.boot_id: str | None = None
        dialogue, dialogue_of_qemu = socket.socketpair()
        monitor, monitor_of_qemu = socket.socketpair()
        self._dialogue = LineSocket(dialogue)
        self.qmp = Qmp(monitor)
        with dialogue_of_qemu, monitor_of_qemu, open(self.log, "wb") as log:
            fds = (dialogue_of_qemu.fileno(), monitor_of_qemu.fileno())
            command = [
                *_base(packages, cpus, memory_mib, machine),
                *([] if from_disk else _kernel(system or packages, kernel_arguments)),
                *(["-incoming", "defer"] if incoming else []),
                *_serial_ports(self.console, *fds),
                *options,
                *(word for number, d in enumerate(devices) for word in d.options(number, packages)),
            ]
            self._process = subprocess.Popen(
                command,
                env=environment(packages),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self, *, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the guest answers scripts, after a start or a reboot."""
        deadline = Deadline(seconds)
        # Before the guest a firmware may have talked on this port too.
        while not (ready := READY.search(line := self._receive(deadline, "booting"))):
            continue
        boot_id = ready[1].decode()
        if boot_id == self.boot_id:
            raise self._failure(f"the guest did not boot, it said {line!r}")
        self.boot_id = boot_id

    def sh(self, script: str, *, seconds: float = 60) -> str:
        """Run ``script`` in the guest with ``sh -eu`` and return what it printed.

        ``GuestError`` when it ends with a status other than 0, when the guest crashes, and when
        it takes longer than ``seconds``.
        """
        deadline = Deadline(seconds)
        self._send(script, deadline)
        status, _, encoded = self._receive(deadline, script).partition(b" ")
        output = base64.b64decode(encoded).decode(errors="replace")
        if status == b"ready":
            raise self._failure(f"the guest rebooted in: {script}")
        if status != b"0":
            raise self._failure(f"status {status.decode()} from: {script}\n{output}")
        return output

    def reboot(self, *, seconds: float = BOOT_SECONDS) -> None:
        """Restart the guest by its own ``reboot``; QEMU and its connections stay."""
        self.qmp.command("set-action", {"reboot": "reset"})
        self._send("reboot -f", Deadline(seconds))
        self.wait_ready(seconds=seconds)
        self.qmp.command("set-action", {"reboot": "shutdown"})

    def pause(self) -> None:
        """Stop the guest's processors and its devices, as before a migration."""
        self.qmp.command("stop")

    def resume(self) -> None:
        """Go on after ``pause``, and once when started with the option ``-S``."""
        self.qmp.command("cont")

    def plug_memory(self) -> str:
        """Add ``PLUGGED_BYTES`` of memory; return the guest's directory for it, still offline."""
        backend = {"qom-type": "memory-backend-memfd", "id": "more", "share": True}
        self.qmp.command("object-add", {**backend, "size": PLUGGED_BYTES})
        self.qmp.command("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "more"})
        block = f"/sys/devices/system/memory/memory{PLUGGED_ADDRESS // MEMORY_BLOCK_BYTES}"
        self.sh(f"until test -e {block}/state; do usleep 10000; done")
        return block

    def unplug_memory(self, *, seconds: float = 60) -> None:
        """Take the plugged memory away again; the guest must have it offline."""
        self.qmp.command("device_del", {"id": "dimm"})
        deadline = Deadline(seconds)
        while self.qmp.command("query-memory-devices"):
            if not deadline.left():
                raise self._failure(f"the guest kept the memory for {seconds} s")

    def power_off(self, *, seconds: float = 60) -> None:
        """Let the guest power itself off and wait until QEMU has ended."""
        self._send("poweroff -f", Deadline(seconds))
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._failure(f"the guest did not power off in {seconds} s") from None
        if status != 0:
            raise self._failure("QEMU failed at power-off")

    def kill(self) -> None:
        """End QEMU at once, as a crash of the host's process would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._dialogue.close()
        self.qmp.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, script: str, deadline: Deadline) -> None:
        try:
            self._dialogue.send(base64.b64encode(script.encode()), deadline)
        except OSError as error:
            raise self._failure(f"QEMU is gone ({error}) before: {script}") from None

    def _receive(self, deadline: Deadline, step: str) -> bytes:
        try:
            return self._dialogue.receive(deadline)
        except TimeoutError:
            raise self._failure(f"no answer in {deadline.seconds} s to: {step}") from None
        except (EOFError, ConnectionResetError):
            self._process.wait(30)
            raise self._failure(f"the guest or QEMU crashed in: {step}") from None

    def _failure(self, words: str) -> GuestError:
        status = self._process.poll()
        state = "running" if status is None else f"ended with {status}"
        return GuestError(f"{words}\n(QEMU: {state})\n{self.report()}")

    def report(self, *, size: int = 4000) -> str:
        """The ends of the guest's console and of QEMU's own output."""
        parts = []
        for path in (self.console, self.log):
            text = path.read_bytes()[-size:].decode(errors="replace") if path.exists() else ""
            parts.append(f"--- {path} ---\n{text.replace(chr(13), '')}")
        return "\n".join(parts)


def _base(packages: Packages, cpus: int, memory_mib: int, machine: str) -> list[str]:
    command = packages.program("usr/bin/qemu-system-x86_64")
    for directory in FIRMWARE_DIRECTORIES:
        command += ["-L", str(packages.root / directory)]
    memory = f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"
    command += ["-machine", f"{machine},memory-backend=memory", "-object", memory]
    command += ["-accel", "tcg,thread=multi", "-cpu", "max"]
    command += ["-m", f"{memory_mib}M,slots=1,maxmem=1G", "-smp", str(cpus)]
    return [*command, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]


def _kernel(packages: Packages, more: str) -> list[str]:
    command = ["-kernel", str(packages.kernel), "-initrd", str(build(packages))]
    return [*command, "-append", f"{KERNEL_ARGUMENTS} {more}".rstrip()]


def _serial_ports(console: Path, dialogue: int, monitor: int) -> list[str]:
    return [
        *("-serial", f"file:{console}"),
        *("-chardev", f"socket,id=dialogue,fd={dialogue}", "-serial", "chardev:dialogue"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
    ]


def environment(packages: Packages) -> dict[str, str]:
    """What QEMU finds in its environment."""
    return os.environ | module_directory(packages)


def module_directory(packages: Packages) -> dict[str, str]:
    """The variable by which QEMU finds its modules: 7.2 has its software emulation in one, and
    the driver of vhost-user disks is one.
    """
    return {"QEMU_MODULE_DIR": str(packages.root / "usr/lib/x86_64-linux-gnu/qemu")}
