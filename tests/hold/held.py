"""``vhost-user hold`` as a process, with what it says and the back-end that it runs."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from peer.blk import Status
from peer.front_end import FrontEnd
from peer.memory import GuestMemory
from peer.process import eventually

COMMAND = [sys.executable, "-m", "vhost_user"]
SOCKET = "held.sock"
LIMIT = 60.0
"""Seconds after which what should have come fails its test."""


class Held:
    """A keeper that runs; a context manager that ends it."""

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        **environment: str,
    ) -> None:
        self.socket = folder / SOCKET
        self._said = folder / "said"
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=os.environ | environment,
                pass_fds=pass_fds,
            )

    @classmethod
    def around(cls, folder: Path, *command: str, options: Sequence[str] = ()) -> Self:
        """Holds a command, and waits until front-ends can come."""
        held = cls(folder, [*COMMAND, "hold", SOCKET, *options, "--", *command])
        held.assert_says("held for process")
        return held

    @property
    def said(self) -> str:
        """All that it and its back-ends have said."""
        return self._said.read_text()

    def assert_says(self, text: str, times: int = 1) -> None:
        """Waits until a text was said so many times."""
        self.wait_until(lambda: self.said.count(text) >= times, f"{text!r} {times} times")

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits until something holds, or never will since the keeper has ended."""

        def is_over() -> bool:
            ended = self.process.poll() is not None
            return holds() or ended

        eventually(is_over, LIMIT)
        assert holds(), f"not seen: {what}\n{self.said}"

    def children(self) -> list[int]:
        """The processes that it has started and that are alive."""
        pid = self.process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found if not _is_dead(int(child))]

    def back_end(self) -> int:
        """The process of the back-end that serves now."""
        told = re.findall(
            r"(?:held for process|vhost-user: process) (\d+)(?:,|:| goes on| follows)", self.said
        )
        return int(told[-1])

    def kill_back_end(self) -> None:
        """Kills the one that serves, and waits until another one does."""
        goes_on = self.said.count(" goes on, ")
        os.kill(self.back_end(), signal.SIGKILL)
        self.assert_says(" goes on, ", goes_on + 1)

    def connect(self, memory: GuestMemory | None = None) -> FrontEnd:
        return FrontEnd.connect(str(self.socket), memory)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks for the end and waits for it; gives the status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def sector(front: FrontEnd, index: int = 0) -> bytes:
    """The disk's first sector, as a driver reads it."""
    result = front.blk(index).read(0, 512)
    assert result.status == Status.OK
    return result.data


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
