"""A man in the middle between a front-end and a back-end that writes down what they say.

Frames and file descriptors pass through unchanged, in order. The channel for the back-end's own
requests is tapped as well: its socket is replaced on the way by one of the tap's.
Source: QEMU, "Vhost-user Protocol".
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HEADER = struct.Struct("=III")  # request id, flags, payload size
REPLY = 0x4
MAX_FDS = 32
GET_PROTOCOL_FEATURES = 15
SET_BACKEND_REQ_FD = 21

NAMES = {
    "main": {
        1: "GET_FEATURES",
        2: "SET_FEATURES",
        3: "SET_OWNER",
        5: "SET_MEM_TABLE",
        8: "SET_VRING_NUM",
        9: "SET_VRING_ADDR",
        10: "SET_VRING_BASE",
        11: "GET_VRING_BASE",
        12: "SET_VRING_KICK",
        13: "SET_VRING_CALL",
        14: "SET_VRING_ERR",
        15: "GET_PROTOCOL_FEATURES",
        16: "SET_PROTOCOL_FEATURES",
        17: "GET_QUEUE_NUM",
        18: "SET_VRING_ENABLE",
        21: "SET_BACKEND_REQ_FD",
        24: "GET_CONFIG",
        25: "SET_CONFIG",
        34: "RESET_DEVICE",
        36: "GET_MAX_MEM_SLOTS",
        37: "ADD_MEM_REG",
        38: "REM_MEM_REG",
        39: "SET_STATUS",
        40: "GET_STATUS",
    },
    "backend": {2: "BACKEND_CONFIG_CHANGE_MSG"},
}
"""The messages that a block device's front-end and back-end may exchange, for the reader."""


class Message(NamedTuple):
    """One message as it passes; the descriptors are the tap's own."""

    request: int
    flags: int
    payload: bytes
    fds: list[int]


@dataclass(kw_only=True)
class Frame:
    """One message as it is written down.

    ``fds`` says of each descriptor whether it is a memfd, an eventfd, a socket or a file.
    """

    phase: str
    channel: str
    sender: str
    request: int
    flags: int
    payload: bytes
    fds: list[str]
    reply: Frame | None = None

    @property
    def name(self) -> str:
        return NAMES[self.channel].get(self.request, "")

    def record(self) -> dict[str, Any]:
        """The frame and its reply as JSON shows them, payloads in hexadecimal."""
        content: dict[str, Any] = {
            "flags": self.flags,
            "payload": self.payload.hex(),
            "fds": self.fds,
        }
        if self.flags & REPLY:
            return content
        head = {"phase": self.phase, "channel": self.channel, "sender": self.sender}
        reply = self.reply.record() if self.reply else None
        return {**head, "request": self.request, "name": self.name, **content, "reply": reply}


class Tap:
    """Listens on ``path`` for front-ends, one after another; dials ``backend`` for each.

    Each frame carries the name of the phase in which it was sent.
    ``protocol_features`` are the bits that the front-end may see of those the back-end offers.
    """

    def __init__(self, path: Path, backend: Path, *, phase: str, protocol_features: int) -> None:
        self._phase = phase
        self.frames: list[Frame] = []
        self._protocol_features = protocol_features
        self._lock = threading.Lock()
        self._backend = backend
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def enter(self, phase: str) -> None:
        """Begin ``phase``. What the peers have sent until now still belongs to the one before."""
        while True:
            with self._lock:
                if not select.select(list(self._open), [], [], 0)[0]:
                    self._phase = phase
                    return

    def disconnect(self) -> None:
        """Break the connections as a back-end that dies would; the listener stays."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.disconnect()

    def _accept(self) -> None:
        while True:
            try:
                frontend, _ = self._listener.accept()
            except OSError:
                return
            backend = socket.socket(socket.AF_UNIX)
            backend.connect(str(self._backend))
            self._join("main", frontend, backend)

    def _join(self, channel: str, frontend: socket.socket, backend: socket.socket) -> None:
        self._open |= {frontend, backend}
        for name, source, sink in (
            ("front-end", frontend, backend),
            ("back-end", backend, frontend),
        ):
            pump = threading.Thread(
                target=self._pump, args=(channel, name, source, sink), daemon=True
            )
            pump.start()

    def _pump(self, channel: str, sender: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # a peer that resets its connection ends it, as one that closes
            while self._pass_on(channel, sender, source, sink):
                pass
        self._open.discard(source)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def _pass_on(
        self, channel: str, sender: str, source: socket.socket, sink: socket.socket
    ) -> bool:
        """Wait for a message and pass it on; ``False`` at the end of the stream."""
        select.select([source], [], [])
        with self._lock:
            message = _read(source)
            if message is not None:
                self._forward(channel, sender, message, sink)
        return message is not None

    def _forward(self, channel: str, sender: str, message: Message, sink: socket.socket) -> None:
        request, flags, payload, fds = message
        if request == GET_PROTOCOL_FEATURES and flags & REPLY:
            payload = self._masked(payload)
        self._note(
            Frame(
                phase=self._phase,
                channel=channel,
                sender=sender,
                request=request,
                flags=flags,
                payload=payload,
                fds=[_kind(fd) for fd in fds],
            )
        )
        if channel == "main" and request == SET_BACKEND_REQ_FD and fds:
            fds = [self._tap_backend_channel(fds[0])]
        socket.send_fds(sink, [HEADER.pack(request, flags, len(payload)) + payload], fds)
        for fd in fds:
            os.close(fd)

    def _note(self, frame: Frame) -> None:
        if not frame.flags & REPLY:
            self.frames.append(frame)
            return
        asked = (f for f in reversed(self.frames) if f.channel == frame.channel)
        next(f for f in asked if f.request == frame.request).reply = frame

    def _masked(self, payload: bytes) -> bytes:
        (offered,) = struct.unpack("=Q", payload)
        return struct.pack("=Q", offered & self._protocol_features)

    def _tap_backend_channel(self, fd: int) -> int:
        """Keep the front-end's end ``fd``; return the one that the back-end gets instead."""
        ours, theirs = socket.socketpair()
        self._join("backend", socket.socket(fileno=fd), ours)
        return theirs.detach()


def _read(source: socket.socket) -> Message | None:
    """One whole message, or ``None`` at the end of the stream."""
    header, fds, _, _ = socket.recv_fds(source, HEADER.size, MAX_FDS)
    if not header:
        return None
    header += _exactly(source, HEADER.size - len(header))
    request, flags, size = HEADER.unpack(header)
    return Message(request, flags, _exactly(source, size), list(fds))


def _exactly(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) != size:
        raise ConnectionResetError("the stream ended inside a message")
    return data


def _kind(fd: int) -> str:
    target = os.readlink(f"/proc/self/fd/{fd}")
    for kind in ("memfd", "eventfd", "socket"):
        if kind in target:
            return kind
    return "file"
