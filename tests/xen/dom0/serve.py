"""The back-end under test: a process of its own that serves a disk on each of four sockets.

``python3 -m xen.dom0.serve DIRECTORY`` serves for Xen ``file.sock``, the image ``file.img``, whose
data never passes through Python; ``map.sock``, ``map.img`` with buffers mapped that would be
copied; and ``ram.sock``, a disk written in Python. ``plain.sock`` is a disk for ordinary front-ends
alone. It prints ``ready`` and ends with its standard input.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import vhost_user as vu


class RamDisk(vu.BlockDevice):
    """A disk in a ``bytearray``."""

    def __init__(self, content: bytes) -> None:
        super().__init__(size=len(content))
        self.content = bytearray(content)

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = self.content[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.content[offset : offset + len(buf)] = buf

    def flush(self) -> None:
        """Nothing is kept."""


def main(directory: Path) -> None:
    images = {name: directory / f"{name}.img" for name in ("file", "map")}
    content = images["file"].read_bytes()
    devices: dict[str, tuple[vu.Device, vu.XenOptions | None]] = {
        "file": (vu.FileDisk(images["file"]), vu.XenOptions()),
        "map": (vu.FileDisk(images["map"]), vu.XenOptions(copy_below=0)),
        "ram": (RamDisk(content), vu.XenOptions()),
        "plain": (RamDisk(content), None),
    }
    with ExitStack() as stack:
        for name, (device, xen) in devices.items():
            socket = directory / f"{name}.sock"
            stack.enter_context(vu.Backend(device, socket=socket, xen=xen))
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
