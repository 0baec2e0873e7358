"""Frames as they travel: a 12-byte header, a payload, and descriptors beside the first byte.

Source: QEMU "Vhost-user Protocol", "Message Specification". Integers are in native byte order.
"""

import array
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .numbers import Flag
from .patience import PATIENCE, is_readable

HEADER = struct.Struct("=III")
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")
VRING_ADDR = struct.Struct("=IIQQQQ")
REGION = struct.Struct("=QQQQ")
CONFIG = struct.Struct("=III")
INFLIGHT = struct.Struct("=QQHHI")


class Closed(Exception):
    """The back-end closed the connection where an answer was due."""


class Message(NamedTuple):
    """One frame that arrived."""

    request: int
    flags: int
    payload: bytes


def frame(request: int, payload: bytes = b"", flags: int = Flag.VERSION) -> bytes:
    """The bytes of one message."""
    return HEADER.pack(request, flags, len(payload)) + payload


def u64(value: int) -> bytes:
    """The payload that holds one number."""
    return U64.pack(value)


def state(index: int, num: int) -> bytes:
    """A vring state: which vring, and a number."""
    return STATE.pack(index, num)


def vring_addr(
    index: int, descriptors: int, used: int, available: int, *, flags: int = 0, log: int = 0
) -> bytes:
    """A vring's addresses in the front-end's address space; used stands before available."""
    return VRING_ADDR.pack(index, flags, descriptors, used, available, log)


def region(guest: int, size: int, user: int, offset: int) -> bytes:
    """One region of guest memory; `offset` counts from the start of its descriptor's file."""
    return REGION.pack(guest, size, user, offset)


def memory_table(regions: Sequence[bytes], *, count: int | None = None) -> bytes:
    """A whole memory table. `count` lies about the number of regions."""
    return STATE.pack(len(regions) if count is None else count, 0) + b"".join(regions)


def single_region(description: bytes) -> bytes:
    """The payload of ADD_MEM_REG and REM_MEM_REG."""
    return U64.pack(0) + description


def config(offset: int, size: int, data: bytes, flags: int = 0) -> bytes:
    """The payload of GET_CONFIG and SET_CONFIG; `size` may lie about `data`."""
    return CONFIG.pack(offset, size, flags) + data


def inflight(size: int, offset: int, queues: int, queue_size: int) -> bytes:
    """The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    return INFLIGHT.pack(size, offset, queues, queue_size, 0)


class Channel:
    """One end of a vhost-user connection, down to the single byte."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(PATIENCE)
        self.descriptors: list[int] = []

    @classmethod
    def connect(cls, path: str) -> "Channel":
        """Dials a listening back-end."""
        dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A socket with a timeout of Python's would not wait for a place in the listen queue.
        limit = struct.pack("@ll", int(PATIENCE), 0)
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            dialled.connect(path)
        except OSError:
            dialled.close()
            raise
        return cls(dialled)

    def send(self, data: bytes, fds: Iterable[int] | None = None) -> None:
        """Sends bytes. `fds=()` attaches a control message with no descriptor in it."""
        if fds is None:
            self.socket.sendall(data)
            return
        rights = array.array("i", fds).tobytes()
        sent = self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def send_pieces(
        self, data: bytes, cuts: Iterable[int], fds: Iterable[int] | None = None
    ) -> None:
        """Sends bytes in pieces that end at each of `cuts`; descriptors go with the first byte."""
        start = 0
        for end in [*cuts, len(data)]:
            if end > start:
                self.send(data[start:end], fds if start == 0 else None)
                start = end

    def command(self, request: int, payload: bytes = b"", fds: Iterable[int] | None = None) -> None:
        """Sends a message that wants no answer."""
        self.send(frame(request, payload), fds)

    def ask(self, request: int, payload: bytes = b"", fds: Iterable[int] | None = None) -> bytes:
        """Sends a message that has an answer of its own; gives the answer's payload."""
        self.command(request, payload, fds)
        return self.answer_to(request)

    def ask_u64(self, request: int) -> int:
        """Sends a message that is answered by one number."""
        return int(U64.unpack(self.ask(request))[0])

    def acknowledged(
        self, request: int, payload: bytes = b"", fds: Iterable[int] | None = None
    ) -> int:
        """Sends a message with NEED_REPLY; gives the acknowledgement, 0 for success."""
        self.send(frame(request, payload, Flag.VERSION | Flag.NEED_REPLY), fds)
        return int(U64.unpack(self.answer_to(request))[0])

    def answer_to(self, request: int) -> bytes:
        """Receives one frame and insists on a reply to `request`: flags are exactly 0x5."""
        message = self.receive()
        if (message.request, message.flags) != (request, Flag.VERSION | Flag.REPLY):
            raise AssertionError(f"no reply to request {request}: {message}")
        return message.payload

    def receive(self) -> Message:
        """Receives one frame; descriptors that come with it are kept in `descriptors`."""
        request, flags, size = HEADER.unpack(self._exactly(HEADER.size))
        return Message(request, flags, self._exactly(size))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._some(count - len(data))
            if not part:
                raise Closed(f"{len(data)} of {count} bytes")
            data += part
        return data

    def _some(self, count: int) -> bytes:
        room = socket.CMSG_SPACE(32 * 4)
        try:
            part, control, _, _ = self.socket.recvmsg(count, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b""
        for level, kind, rights in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(rights) - len(rights) % 4
                self.descriptors.extend(array.array("i", rights[:whole]))
        return part

    def is_taken(self) -> bool:
        """The back-end has taken from the socket all bytes that were sent."""
        left = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, left)
        return left[0] == 0

    def silent(self) -> bool:
        """Nothing has arrived that was not asked for, and the connection is open."""
        return not is_readable(self.socket.fileno(), 0)

    def is_open(self) -> bool:
        """The back-end has not hung up."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return not poll.poll(0)

    def is_closed(self, seconds: float = PATIENCE) -> bool:
        """Waits for the back-end to close. Any frame that arrives instead is an error."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                part = self._some(4096)
                if part:
                    raise AssertionError(f"bytes instead of a close: {part.hex()}")
                return True
        return False

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())
