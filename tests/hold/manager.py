"""A service manager that keeps descriptors: its side of sd_notify(3) and sd_listen_fds(3)."""

import fcntl
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from peer.process import eventually

from .held import Held

LAUNCH = """
import fcntl, os, sys
kept = [fcntl.fcntl(int(n), fcntl.F_DUPFD_CLOEXEC, 100) for n in sys.argv[1].split(",") if n]
for n, fd in enumerate(kept):
    os.dup2(fd, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Hands descriptors down: from number 3 on, with the variables that say so."""

FIRST_FREE = 200
"""Descriptors are kept at numbers that none is handed down as."""


class Manager:
    """Hears notifications, and keeps up to ``room`` descriptors; a context manager."""

    def __init__(self, folder: Path, room: int = 4) -> None:
        self._folder = folder
        self._room = room
        self.address = str(folder / "notify")
        self.stored: dict[str, int] = {}
        self._heard = threading.Condition()
        self._settled = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def start(self, words: Sequence[str], **environment: str) -> Held:
        """Starts the service, with what it has stored before. Returns when it serves."""
        self.settle()
        names, fds = list(self.stored), list(self.stored.values())
        launch = [sys.executable, "-c", LAUNCH, ",".join(map(str, fds))]
        environment |= {"NOTIFY_SOCKET": self.address, "LISTEN_FDNAMES": ":".join(names)}
        held = Held(self._folder, [*launch, *words], pass_fds=fds, **environment)
        held.assert_says("held for process")
        return held

    def settle(self) -> None:
        """Waits until all that was sent is heard."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"SETTLED=1", self.address)
        with self._heard:
            assert self._heard.wait_for(lambda: self._settled, 60)
            self._settled -= 1

    def assert_empty(self) -> None:
        """Nothing is stored any more, or will not be in a moment."""
        assert eventually(lambda: not self.stored), f"{self.stored}"

    def _listen(self) -> None:
        while True:
            told, fds, _, _ = socket.recv_fds(self._sock, 4096, 8)
            lines = dict(line.split("=", 1) for line in told.decode().splitlines())
            if "OVER" in lines:
                return
            self._store(lines, fds)
            with self._heard:
                self._settled += "SETTLED" in lines
                self._heard.notify_all()

    def _store(self, lines: dict[str, str], fds: list[int]) -> None:
        for fd in fds:
            # What is polled goes when its other end has.
            if lines.get("FDSTORE") == "1" and lines.get("FDPOLL") == "0" and self._has_room():
                self.stored[lines["FDNAME"]] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
            os.close(fd)
        if lines.get("FDSTOREREMOVE") == "1" and lines["FDNAME"] in self.stored:
            os.close(self.stored.pop(lines["FDNAME"]))

    def _has_room(self) -> bool:
        return len(self.stored) < self._room

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"OVER=1", self.address)
        self._thread.join()
        self._sock.close()
        for fd in self.stored.values():
            os.close(fd)
