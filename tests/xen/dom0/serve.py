"""The back-end under test: a process of its own that serves a device on each of ten sockets.

``python3 -m xen.dom0.serve DIRECTORY`` serves for Xen ``file.sock``, the image ``file.img``, whose
data never passes through Python; ``map.sock``, ``map.img`` with buffers mapped that would be
copied; ``long.sock``, ``long.img`` by three rings of any size; ``null.sock``, a disk that
does nothing; ``ram.sock``, a disk written in Python, and ``later.sock``, one that answers later;
``views.sock`` and ``raw.sock``, with disks that tell what their views show, by default and with raw
views; and ``rng.sock``. ``plain.sock`` is a disk for ordinary front-ends alone. With
``DIRECTORY DEVICE`` it serves that block device alone, past the page cache: ``direct.sock`` by a
``FileDisk``, ``python.sock`` by Python. It prints ``ready`` and ends with its standard input.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import vhost_user as vu

from .backend import IMAGES
from .devices import DirectDisk, LaterDisk, RamDisk, ViewDisk

Served: TypeAlias = dict[str, tuple[vu.Device, vu.XenOptions | None]]
"""What is served on which socket, and how."""


def main(directory: Path, device: str | None = None) -> None:
    with ExitStack() as stack:
        for name, (served, xen) in (one(device) if device else several(directory)).items():
            socket = directory / f"{name}.sock"
            stack.enter_context(vu.Backend(served, socket=socket, xen=xen))
        print("ready", flush=True)
        sys.stdin.read()


def one(device: str) -> Served:
    options = vu.XenOptions(copy_below=0)
    return {
        "direct": (vu.FileDisk(device, direct=True), options),
        "python": (DirectDisk(device), options),
    }


def several(directory: Path) -> Served:
    images = {name: directory / f"{name}.img" for name in IMAGES}
    content = images["file"].read_bytes()
    return {
        "file": (vu.FileDisk(images["file"]), vu.XenOptions()),
        "map": (vu.FileDisk(images["map"]), vu.XenOptions(copy_below=0)),
        "long": (vu.FileDisk(images["long"], num_queues=3), vu.XenOptions()),
        "null": (vu.NullDisk(size=len(content)), vu.XenOptions()),
        "ram": (RamDisk(content), vu.XenOptions()),
        "later": (LaterDisk(content), vu.XenOptions()),
        "views": (ViewDisk(), vu.XenOptions()),
        "raw": (ViewDisk(), vu.XenOptions(raw_views=True)),
        "rng": (vu.Rng(), vu.XenOptions()),
        "plain": (RamDisk(content), None),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
