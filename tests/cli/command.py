"""The command ``vhost-user`` as a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

LIMIT = 30.0
"""Seconds after which a process that should have ended fails its test."""


class Result(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "vhost_user", *words]


def run(*words: str, **options: Any) -> Result:
    """Runs the command to its end."""
    done = subprocess.run(
        command(*words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def _line_of(fd: int) -> str:
    """The next line, and nothing of what follows, which ``communicate`` would not find."""
    line = bytearray()
    while (byte := os.read(fd, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


class Server:
    """A command that serves; a context manager that ends it.

    ``first_line`` is what it said when front-ends could come.
    """

    def __init__(self, *words: str, pass_fds: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        assert self.process.stderr is not None
        self.first_line = _line_of(self.process.stderr.fileno())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> Result:
        """Waits for the end; what it said besides the first line."""
        out, err = self.process.communicate(timeout=LIMIT)
        return Result(self.process.returncode, out, err)

    def end(self, number: signal.Signals = signal.SIGTERM) -> Result:
        """Asks for the end, and waits for it."""
        self.send(number)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
