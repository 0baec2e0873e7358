"""``--run``: a command that starts when front-ends can connect, and ends the server with it."""

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable

from .exits import Exit, Failure, one_line

GRACE = 5.0
"""Seconds that the command has to end once the server has."""

SOCKET = "vhost-user.sock"
"""The socket's name in a directory that is made for it."""


def add_option(parser: argparse._ArgumentGroup) -> None:
    """Adds ``--run``."""
    parser.add_argument(
        "--run",
        dest="captive",
        metavar="COMMAND",
        help="have a shell run this when front-ends can connect, with $socket for the socket's "
        "path, and end with it and its status; without --socket-path a place is made for it",
    )


def serve_beside(options: argparse.Namespace, serve: Callable[[Callable[[], None]], int]) -> int:
    """Runs ``serve``, which is to call its argument when front-ends can connect.

    The status is the command's, if it has ended by itself.
    """
    from .serve import until_signalled

    command: str | None = options.captive
    if command is None:
        return until_signalled(lambda: serve(_nothing))
    if options.fd is not None:
        raise Failure("--run needs a path for its command: not with --fd", status=Exit.USAGE)
    made = None if options.socket_path is not None else tempfile.mkdtemp(prefix="vhost-user-")
    if made is not None:
        options.socket_path = os.path.join(made, SOCKET)
    try:
        captive = Captive(command, options.socket_path)
        status = until_signalled(lambda: captive.beside(serve))
        return captive.status if captive.status is not None else status
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _nothing() -> None:
    """There is no command to start."""


class Captive:
    """One command, whose end ends this process as SIGTERM does."""

    def __init__(self, command: str, socket: str) -> None:
        self.status: int | None = None
        """How it has ended by itself; as shells say it, with 128 added to a signal's number."""
        self._command = command
        self._socket = os.path.abspath(socket)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_over = False

    def beside(self, serve: Callable[[Callable[[], None]], int]) -> int:
        """Serves, and ends the command if it is there longer than the server."""
        try:
            return serve(self.start)
        finally:
            self._end()

    def start(self) -> None:
        """Starts the command, and a thread that waits for it."""
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self._command], env={**os.environ, "socket": self._socket}
            )
        except (OSError, ValueError) as error:
            raise Failure(f"--run: {one_line(error)}") from error
        threading.Thread(target=self._wait, args=[self._process], daemon=True).start()

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        number = process.wait()
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self.status = number if number >= 0 else 128 - number
            os.kill(os.getpid(), signal.SIGTERM)

    def _end(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
