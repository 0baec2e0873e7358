"""The back-end under test: a process of its own that serves a disk on each of six sockets.

``python3 -m xen.dom0.serve DIRECTORY`` serves for Xen ``file.sock``, the image ``file.img``, whose
data never passes through Python; ``map.sock``, ``map.img`` with buffers mapped that would be
copied; ``ram.sock``, a disk written in Python; and ``views.sock`` and ``raw.sock``, with disks that
tell what their views show, by default and with raw views. ``plain.sock`` is a disk for ordinary
front-ends alone. With ``DIRECTORY DEVICE`` it serves ``direct.sock`` alone, that block device past
the page cache. It prints ``ready`` and ends with its standard input.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import vhost_user as vu

Served: TypeAlias = dict[str, tuple[vu.Device, vu.XenOptions | None]]
"""What is served on which socket, and how."""


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


KEEP_SECTOR, LET_GO_SECTOR = 1, 2


class ViewDisk(vu.BlockDevice):
    """Reads say what is behind their view: ``device``, or ``memory`` of this process.

    What a read of ``KEEP_SECTOR`` shows is kept, until the first of ``LET_GO_SECTOR``; then it
    becomes ``late``.
    """

    def __init__(self) -> None:
        super().__init__(size=1 << 20)
        self.kept: list[memoryview] = []

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:6] = b"device" if is_of_device(buf) else b"memory"
        if offset == KEEP_SECTOR * 512:
            self.kept.append(buf[:])
        elif offset == LET_GO_SECTOR * 512:
            for view in self.kept:
                view[:4] = b"late"
            self.kept.clear()

    def write(self, offset: int, buf: memoryview, /) -> None:
        """Looks at all of the data."""
        bytes(buf)


def is_of_device(view: memoryview) -> bool:
    """Whether a grant device is mapped where ``view`` begins."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
            if start <= address < end:
                return "gntdev" in line
    raise AssertionError(f"nothing is mapped at {address:#x}")


def main(directory: Path, device: str | None = None) -> None:
    with ExitStack() as stack:
        for name, (served, xen) in (one(device) if device else several(directory)).items():
            socket = directory / f"{name}.sock"
            stack.enter_context(vu.Backend(served, socket=socket, xen=xen))
        print("ready", flush=True)
        sys.stdin.read()


def one(device: str) -> Served:
    return {"direct": (vu.FileDisk(device, direct=True), vu.XenOptions(copy_below=0))}


def several(directory: Path) -> Served:
    images = {name: directory / f"{name}.img" for name in ("file", "map")}
    content = images["file"].read_bytes()
    return {
        "file": (vu.FileDisk(images["file"]), vu.XenOptions()),
        "map": (vu.FileDisk(images["map"]), vu.XenOptions(copy_below=0)),
        "ram": (RamDisk(content), vu.XenOptions()),
        "views": (ViewDisk(), vu.XenOptions()),
        "raw": (ViewDisk(), vu.XenOptions(raw_views=True)),
        "plain": (RamDisk(content), None),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
