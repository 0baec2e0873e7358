"""``vhost-user blk`` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 30
STOP_SECONDS = 10


class BlkCommand:
    """Serves the file ``image`` at ``socket`` between ``start`` and ``stop``. ``within`` are words
    that run another command in a world of its own.
    """

    def __init__(
        self, image: Path, socket: Path, *options: str, within: Sequence[str] = ()
    ) -> None:
        self.socket = socket
        script = Path(sys.executable).with_name("vhost-user")
        arguments = ["--socket-path", str(socket), "--blk-file", str(image), *options]
        self._command = [*within, str(script), "blk", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens: the socket gets its name only then."""
        self._process = subprocess.Popen(self._command)
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            status = self._process.poll()
            assert status is None, f"vhost-user blk ended with {status}"
            assert time.monotonic() < end, "vhost-user blk does not listen"
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
