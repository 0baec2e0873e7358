"""``vhost-user`` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 30
STOP_SECONDS = 10


class ServeCommand:
    """Serves at ``socket`` between ``start`` and ``stop``; ``words`` are those of the command.
    ``within`` are words that run another command in a world of its own. ``log`` takes what it says.
    """

    def __init__(
        self, *words: str, socket: Path, within: Sequence[str] = (), log: Path | None = None
    ) -> None:
        self.socket = socket
        self._log = log
        script = Path(sys.executable).with_name("vhost-user")
        self._command = [*within, str(script), *words, "--socket-path", str(socket)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens: the socket gets its name only then."""
        if self._log is None:
            self._process = subprocess.Popen(self._command)
        else:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(self._command, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            status = self._process.poll()
            assert status is None, f"vhost-user ended with {status}\n{self.report()}"
            assert time.monotonic() < end, "vhost-user does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it by SIGTERM, which it must obey with status 0."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(STOP_SECONDS) == 0
        self._process = None

    def kill(self) -> None:
        """End it in any case; it is done if it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def report(self) -> str:
        """What it has said so far, if that is kept."""
        return self._log.read_text() if self._log and self._log.exists() else ""


class BlkCommand(ServeCommand):
    """``vhost-user blk`` on the file ``image``."""

    def __init__(
        self,
        image: Path,
        socket: Path,
        *options: str,
        within: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        words = ["blk", "--blk-file", str(image), *options]
        super().__init__(*words, socket=socket, within=within, log=log)
