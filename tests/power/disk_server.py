"""A file system of one file on a disk with a volatile write cache.

Run as a program: `disk_server FOLDER SIZE CONTROL WRITEBACK`, with the last three as numbers. It
mounts a file system of its own on FOLDER and passes two descriptors of its file over the socket
CONTROL, as `hostile.fuse_server` does. Then each byte that comes in is a request for what the disk
is like, which is answered with a length of 8 bytes and so many bytes of a pickled `State`. It ends
with the socket. With WRITEBACK the kernel keeps what is written in its page cache until it has to
write it out, as it does for a file system on a disk; without, each write reaches the disk at once.

Messages are those of the kernel's FUSE protocol 7.31 (linux/fuse.h).
"""

import os
import pickle
import socket
import struct
import sys
import threading
from typing import NamedTuple

from hostile.fuse_server import (
    FILE,
    FOREVER,
    INIT,
    READ,
    FileSystem,
    mount,
    pass_on,
)

SETATTR, WRITE, RELEASE, FSYNC, FALLOCATE = 4, 16, 18, 20, 43
WRITEBACK_CACHE = 1 << 16
PUNCH_HOLE, ZERO_RANGE = 3, 16
"""Modes of `fallocate`: the first with FALLOC_FL_KEEP_SIZE."""


class State(NamedTuple):
    """What is on stable storage, and what is in the write cache: writes as places and bytes, the
    oldest first.
    """

    stable: bytes
    volatile: list[tuple[int, bytes]]


class Disk(FileSystem):
    """Answers the kernel, and remembers what a power cut would take away."""

    def __init__(self, fuse: int, size: int, *, writeback: bool) -> None:
        super().__init__(fuse, size)
        self._writeback = writeback
        self._stable = bytearray(size)
        self._now = bytearray(size)
        self._volatile: list[tuple[int, bytes]] = []

    def state(self) -> State:
        """What a power cut now would meet."""
        with self._changed:
            return State(bytes(self._stable), list(self._volatile))

    def _body(self, operation: int, node: int, payload: bytes) -> bytes | None:
        with self._changed:
            if operation == INIT:
                flags = WRITEBACK_CACHE if self._writeback else 0
                sizes = struct.pack("<IIIIHHII", 7, 31, 0, flags, 16, 12, 1 << 16, 1)
                return sizes + bytes(36)
            if operation == READ:
                offset, size = struct.unpack_from("<QI", payload, 8)
                return bytes(self._now[offset : offset + size])
            if operation == WRITE:
                offset, size = struct.unpack_from("<QI", payload, 8)
                self._write(offset, payload[40 : 40 + size])
                return struct.pack("<II", size, 0)
            if operation == FALLOCATE:
                offset, length, mode = struct.unpack_from("<QQI", payload, 8)
                if mode not in (PUNCH_HOLE, ZERO_RANGE):
                    return None
                self._write(offset, bytes(length))
                return b""
            if operation == FSYNC:
                self._stable[:] = self._now
                self._volatile.clear()
                return b""
            if operation == SETATTR:
                return struct.pack("<QII", FOREVER, 0, 0) + self._attributes(FILE)
            if operation == RELEASE:
                return b""
            return super()._body(operation, node, payload)

    def _write(self, offset: int, data: bytes) -> None:
        self._now[offset : offset + len(data)] = data
        self._volatile.append((offset, data))


def main() -> None:
    folder, size = sys.argv[1], int(sys.argv[2])
    control, writeback = socket.socket(fileno=int(sys.argv[3])), sys.argv[4] == "1"
    fuse = mount(folder)
    if os.fork() == 0:
        pass_on(os.path.join(folder, "file"), fuse, control)
    disk = Disk(fuse, size, writeback=writeback)
    threading.Thread(target=disk.serve, daemon=True).start()
    while control.recv(1):
        answer = pickle.dumps(disk.state())
        control.sendall(struct.pack("<Q", len(answer)) + answer)
    os._exit(0)


if __name__ == "__main__":
    main()
