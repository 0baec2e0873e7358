"""A socket that carries lines, read with a deadline."""

from __future__ import annotations

import socket

from rig.deadline import Deadline


class LineSocket:
    """Wraps a connected stream socket and owns it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unread = bytearray()

    def send(self, line: bytes, deadline: Deadline) -> None:
        """Send ``line`` and the end of it. ``OSError`` when the peer has gone."""
        self._socket.settimeout(max(deadline.left(), 0.001))
        self._socket.sendall(line + b"\n")

    def receive(self, deadline: Deadline) -> bytes:
        """The next line without its end.

        ``TimeoutError`` when the deadline passes, ``EOFError`` when the peer has gone.
        """
        while (end := self._unread.find(b"\n")) < 0:
            self._socket.settimeout(max(deadline.left(), 0.001))
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise EOFError
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def close(self) -> None:
        self._socket.close()
