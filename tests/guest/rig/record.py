"""Records what QEMU's vhost-user-blk says to a back-end over the life of a guest.

The back-end is ``qemu-storage-daemon``, so that the record owes nothing to this project.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .machine import Device, Machine
from .packages import Packages
from .qmp import Qmp
from .tap import Tap

DISK_BYTES = 64 << 20
GROWN_BYTES = 96 << 20
QUEUES = 2
READ_A_BLOCK = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct"

PROTOCOL_FEATURES = {
    "all": (1 << 64) - 1,
    "plain": 1 << 0 | 1 << 9,  # MQ, without which one queue is the limit; CONFIG, which blk needs
}
"""What the front-end may see. ``plain`` leaves no acknowledgements and no memory slots."""


def record(packages: Packages, features: str) -> dict[str, Any]:
    """Run a guest through its life and return the conversation, ready for JSON."""
    with tempfile.TemporaryDirectory(prefix="vhost-user-") as name:
        directory = Path(name)
        with _storage_daemon(directory) as (backend, monitor):
            offered = PROTOCOL_FEATURES[features]
            path = directory / "tap.sock"
            tap = Tap(path, backend, phase="connect", protocol_features=offered)
            try:
                _live(packages, directory, tap, monitor)
            finally:
                tap.close()
    return {
        "frontend": f"QEMU {packages.versions['qemu-system-x86']}, {_device()}",
        "guest": f"Linux {packages.kernel_release}, {QUEUES} CPUs, 256 MiB",
        "backend": _version(),
        "messages": [frame.record() for frame in tap.frames],
    }


def dump(conversation: dict[str, Any]) -> str:
    """JSON with one message a line."""
    head = {key: value for key, value in conversation.items() if key != "messages"}
    lines = ",\n".join(json.dumps(message) for message in conversation["messages"])
    return json.dumps(head, indent=0)[:-2] + f',\n"messages": [\n{lines}\n]}}\n'


def _device() -> str:
    return f"vhost-user-blk-pci,num-queues={QUEUES}"


def _live(packages: Packages, directory: Path, tap: Tap, monitor: Qmp) -> None:
    device = Device(model=_device(), socket=directory / "tap.sock", reconnect=True)
    with Machine(packages, directory, [device], cpus=QUEUES, options=["-S"]) as guest:
        guest.qmp.command("query-status")
        for phase in _life(guest, tap, monitor):
            tap.enter(phase)


def _life(guest: Machine, tap: Tap, monitor: Qmp) -> Iterator[str]:
    """Each phase by its name, then what happens in it. QEMU has started and connected before."""
    yield "firmware and kernel start"
    guest.resume()
    guest.wait_ready()
    yield "input and output"
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && cp -a /sbin /mnt && umount /mnt")
    yield "write cache on and off"
    for mode in ("write back", "write through", "write back"):
        guest.sh(f"echo {mode} >/sys/block/vda/cache_type")
    if any(frame.name == "SET_BACKEND_REQ_FD" for frame in tap.frames):
        # qemu-storage-daemon aborts when it cannot tell the front-end of a resize
        yield "the back-end resizes the disk"
        _resize(guest, monitor)
    yield "memory plugged"
    guest.plug_memory()
    yield "memory unplugged"
    guest.unplug_memory()
    yield "driver unbound"
    guest.sh("cd /sys/bus/virtio/drivers/virtio_blk && echo virtio0 >unbind")
    yield "driver bound"
    guest.sh("cd /sys/bus/virtio/drivers/virtio_blk && echo virtio0 >bind")
    yield "virtual machine stopped"
    guest.pause()
    yield "virtual machine continued"
    guest.resume()
    guest.sh(READ_A_BLOCK)
    yield "guest reboots"
    guest.reboot()
    yield "back-end lost and found"
    tap.disconnect()
    guest.sh(READ_A_BLOCK)
    yield "guest powers off"
    guest.power_off()


def _resize(guest: Machine, monitor: Qmp) -> None:
    monitor.command("block_resize", {"node-name": "disk", "size": GROWN_BYTES})
    guest.sh(f"until grep -qx {GROWN_BYTES >> 9} /sys/block/vda/size; do usleep 10000; done")


@contextmanager
def _storage_daemon(directory: Path) -> Iterator[tuple[Path, Qmp]]:
    image, path = directory / "disk.img", directory / "backend.sock"
    image.touch()
    with open(image, "r+b") as file:
        file.truncate(DISK_BYTES)
    ours, theirs = socket.socketpair()
    export = f"vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={QUEUES}"
    with theirs:
        process = subprocess.Popen(
            [
                *_command(),
                *("--blockdev", f"file,node-name=disk,filename={image}"),
                *("--chardev", f"socket,id=monitor,fd={theirs.fileno()}", "--monitor", "monitor"),
                *("--export", f"{export},addr.type=unix,addr.path={path}"),
            ],
            pass_fds=[theirs.fileno()],
        )
    monitor = Qmp(ours)
    try:
        monitor.command("query-block-exports")  # answered once the export listens
        yield path, monitor
    finally:
        process.kill()
        process.wait()
        monitor.close()


def _command() -> list[str]:
    found = shutil.which("qemu-storage-daemon")
    if found is None:
        raise FileNotFoundError("qemu-storage-daemon is missing: apt-get install qemu-utils")
    return [found]


def _version() -> str:
    shown = subprocess.run([*_command(), "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()[0]
