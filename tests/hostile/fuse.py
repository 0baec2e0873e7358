"""The test's handle on a file system of one file, and on one that answers when the test says so."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .fuse_server import SKIPPED

PROGRAM = Path(__file__).with_name("fuse_server.py")
ANSWER_SECONDS = 20.0


class Mounted:
    """A process that serves one file; `cached` and `direct` are descriptors of it."""

    def __init__(self, words: Sequence[str], folder: Path, size: int) -> None:
        """Runs Python with `words` and FOLDER, SIZE and CONTROL behind them. Skips the test where
        FUSE cannot be mounted.
        """
        self._control, other = socket.socketpair()
        self._control.settimeout(ANSWER_SECONDS)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, *words, str(folder), str(size), str(other.fileno())],
                pass_fds=[other.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            _, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
        except TimeoutError:
            self.process.kill()
            raise
        if not descriptors:
            _, errors = self.process.communicate()
            assert self.process.returncode == SKIPPED, errors
            pytest.skip(f"FUSE is needed: {errors}")
        self.cached, self.direct = descriptors
        # Its mount is seen by no other process: this is how another opens the file.
        self.path = f"/proc/{self.process.pid}/root{folder}/file"

    def close(self) -> None:
        """Ends the process; the descriptors are the test's to close."""
        self._control.close()
        self.process.communicate(timeout=ANSWER_SECONDS)


class SlowFiles(Mounted):
    """Answers reads when the test says so."""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__([str(PROGRAM)], folder, size)

    def hold(self) -> None:
        """From now on no read is answered."""
        self._ask(b"h")

    def wait_for_a_read(self) -> None:
        """Waits until a read is held back."""
        self._ask(b"w")

    def release(self) -> None:
        """Answers what is held back; the answers have reached the kernel on return."""
        self._ask(b"r")

    def _ask(self, command: bytes) -> None:
        self._control.send(command)
        assert self._control.recv(1) == command
