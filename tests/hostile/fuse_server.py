"""A file system of one file, whose reads are answered when the test says so.

Run as a program: `fuse_server.py FOLDER SIZE CONTROL`. It mounts a file system of its own on
FOLDER, in a mount namespace of its own, and passes two descriptors of its file over the socket
CONTROL: one for the page cache, one for direct I/O. Then each byte that comes in is a command, and
is echoed when it is carried out: `h` holds reads back from now on, `w` waits until one is held, `r`
answers what is held. It ends with the socket. Status 77: this machine does not let it mount.

Messages are those of the kernel's FUSE protocol 7.31 (linux/fuse.h).
"""

import ctypes
import os
import socket
import struct
import sys
import threading

CLONE_NEWNS, MS_REC_PRIVATE, SKIPPED = 0x20000, 0x44000, 77
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, FLUSH, INIT = 1, 2, 3, 14, 15, 17, 25, 26
ROOT, FILE = 1, 2
ENOSYS = -38
FOREVER = 1 << 30
IN_HEADER = struct.Struct("<IIQQIIII")
OUT_HEADER = struct.Struct("<IiQ")
BYTE = b"\x5a"
"""What the file is full of."""


class FileSystem:
    """Answers the kernel, on a thread of its own."""

    def __init__(self, fuse: int, size: int) -> None:
        self._fuse = fuse
        self._size = size
        self._changed = threading.Condition()
        self._holds = False
        self._held: list[tuple[int, bytes]] = []

    def serve(self) -> None:
        """Answers one message after the other."""
        while True:
            message = os.read(self._fuse, 1 << 20)
            _, operation, unique, node, *_ = IN_HEADER.unpack_from(message)
            if operation == FORGET:
                continue
            body = self._body(operation, node, message[IN_HEADER.size :])
            with self._changed:
                if operation == READ and self._holds:
                    self._held.append((unique, body or b""))
                    self._changed.notify_all()
                    continue
            self._answer(unique, body)

    def hold(self) -> None:
        """Answers no read from now on."""
        with self._changed:
            self._holds = True

    def wait_for_a_read(self) -> None:
        """Returns when a read is held back."""
        with self._changed:
            self._changed.wait_for(lambda: self._held)

    def release(self) -> None:
        """Answers the reads that were held back, and all later ones."""
        with self._changed:
            self._holds = False
            while self._held:
                self._answer(*self._held.pop())

    def _answer(self, unique: int, body: bytes | None) -> None:
        body, error = (b"", ENOSYS) if body is None else (body, 0)
        os.write(self._fuse, OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)

    def _body(self, operation: int, node: int, payload: bytes) -> bytes | None:
        if operation == INIT:
            return struct.pack("<IIIIHHII", 7, 31, 0, 0, 16, 12, 1 << 16, 1) + bytes(36)
        if operation == LOOKUP:
            return struct.pack("<QQQQII", FILE, 0, FOREVER, FOREVER, 0, 0) + self._attributes(FILE)
        if operation == GETATTR:
            return struct.pack("<QII", FOREVER, 0, 0) + self._attributes(node)
        if operation == OPEN:
            return bytes(16)
        if operation == STATFS:
            return struct.pack("<QQQQQIII", 0, 0, 0, 1, 0, 4096, 255, 4096) + bytes(28)
        if operation == READ:
            offset, size = struct.unpack_from("<QI", payload, 8)
            return BYTE * max(0, min(int(size), self._size - int(offset)))
        if operation == FLUSH:
            return b""  # Else the kernel would not ask again when a descriptor is closed.
        return None

    def _attributes(self, node: int) -> bytes:
        size, mode = (0, 0o40755) if node == ROOT else (self._size, 0o100666)
        times = bytes(36)
        return (
            struct.pack("<QQQ", node, size, size // 512)
            + times
            + struct.pack("<IIIIIII", mode, 1, 0, 0, 0, 4096, 0)
        )


def mount(folder: str) -> int:
    """Mounts on `folder`, where no other process sees it; returns what the kernel talks through."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result:
            skip(f"{what}: {os.strerror(ctypes.get_errno())}")

    check(libc.unshare(CLONE_NEWNS), "a mount namespace of its own")
    check(libc.mount(None, b"/", None, MS_REC_PRIVATE, None), "private mounts")
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        skip(str(error))
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    check(libc.mount(b"test", folder.encode(), b"fuse", 0, options.encode()), "mount")
    return fuse


def skip(why: str) -> None:
    """Ends the process: this machine lacks something."""
    print(why, file=sys.stderr, flush=True)
    os._exit(SKIPPED)


def pass_on(path: str, fuse: int, control: socket.socket) -> None:
    """Opens the file and ends. It runs in a process of its own: one that serves a file and has it
    open waits for itself when it is killed.
    """
    os.close(fuse)
    opened = [os.open(path, os.O_RDWR | flags) for flags in (0, os.O_DIRECT)]
    socket.send_fds(control, [b"!"], opened)
    os._exit(0)


def main() -> None:
    folder, size, control = sys.argv[1], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3]))
    fuse = mount(folder)
    if os.fork() == 0:
        pass_on(os.path.join(folder, "file"), fuse, control)
    files = FileSystem(fuse, size)
    threading.Thread(target=files.serve, daemon=True).start()
    commands = {b"h": files.hold, b"w": files.wait_for_a_read, b"r": files.release}
    while command := control.recv(1):
        commands[command]()
        control.send(command)
    os._exit(0)


if __name__ == "__main__":
    main()
