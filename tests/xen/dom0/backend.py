"""The back-end's process, as the tests see it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from peer.patience import PATIENCE
from peer.process import eventually

DISK_BYTES = 1 << 20
IMAGES = ("file", "map", "long")
"""Sockets with an image behind them."""


class Process:
    """Runs ``command``, which listens in ``directory``, and keeps what it says there."""

    def __init__(self, directory: Path, command: Sequence[str], *, user: int = 0) -> None:
        self.directory = directory
        with open(directory / "backend.log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                user=user,
            )

    def socket(self, name: str) -> str:
        return str(self.directory / f"{name}.sock")

    def log(self) -> str:
        """What it has said so far."""
        return (self.directory / "backend.log").read_text()

    def kill(self) -> None:
        """End it as a crash would; returns when the kernel has taken all it had."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def ask_to_end(self) -> None:
        """End it by SIGTERM."""
        self.process.terminate()

    def close(self) -> None:
        """End it and insist that it was alive and well until now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ask_to_end()
        self.process.stdin.close()
        status = self.process.wait(PATIENCE)
        self.process.stdout.close()
        assert status == 0, f"the back-end ended with {status}:\n{self.log()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


class BackendProcess(Process):
    """Serves copies of a disk of random bytes from ``directory``; see ``serve``.

    ``user``: who it runs as, to whom ``directory`` belongs then. ``device``: a block device of
    the same size, which is served alone. ``hidden``: files and directories that are empty for it.
    """

    def __init__(
        self, directory: Path, *, user: int = 0, device: str = "", hidden: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.device = device
        self.content = random.Random(1).randbytes(DISK_BYTES)
        for socket in ("direct",) if device else IMAGES:
            self.image(socket).write_bytes(self.content)
            os.chown(self.image(socket), user, -1)
        os.chown(directory, user, -1)
        command = [sys.executable, "-m", "xen.dom0.serve", str(directory), *filter(None, [device])]
        super().__init__(directory, [*without(hidden), *command], user=user)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            self.process.wait(PATIENCE)
            raise RuntimeError(f"the back-end did not start:\n{self.log()}")

    def image(self, socket: str) -> Path:
        """The file behind a socket; its data does not pass through Python."""
        return Path(self.device) if self.device else self.directory / f"{socket}.img"

    def ask_to_end(self) -> None:
        """It ends with its standard input."""


class Command(Process):
    """``vhost-user WORDS`` with a socket of that name, ``file`` if nothing else is asked for."""

    def __init__(self, directory: Path, *words: str, socket: str = "file") -> None:
        self.directory = directory
        where = ["--socket-path", self.socket(socket)]
        super().__init__(directory, [sys.executable, "-m", "vhost_user", *words, *where])
        if not eventually(lambda: "listening" in self.log()):
            self.kill()
            raise RuntimeError(f"the command does not listen:\n{self.log()}")


def without(hidden: Sequence[str]) -> list[str]:
    """The start of a command that runs the rest of itself where these paths are empty."""
    if not hidden:
        return []
    steps = [
        f"mount -t tmpfs none {path}" if os.path.isdir(path) else f"mount -o bind /dev/null {path}"
        for path in hidden
    ]
    return ["unshare", "-m", "sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh"]
