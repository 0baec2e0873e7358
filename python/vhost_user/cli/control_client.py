"""The other end of a server's ``--control`` socket."""

import json
import socket
from types import TracebackType
from typing import Any, Self

from .exits import Exit, Failure, one_line

MAX_ANSWER = 64 << 20
"""Bytes of an answer: metrics of the largest device take a few MiB."""


class Connection:
    """A connection to the socket at ``path``; each answer has ``timeout`` seconds.

    What goes wrong is a :class:`Failure`.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
        except (OSError, ValueError) as error:
            self._socket.close()
            absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            hint = "; was a server started with --control there?" if absent else ""
            what = f"cannot connect to {path}: {one_line(error)}{hint}"
            raise Failure(what, status=Exit.UNREACHABLE) from error
        self._answers = self._socket.makefile("rb")

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer to an order; a :class:`Failure` with the server's words if it refuses."""
        try:
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            line = self._answers.readline(MAX_ANSWER)
            answer = json.loads(line) if line else None
        except TimeoutError as error:
            raise Failure(f"{self._path}: no answer", status=Exit.UNREACHABLE) from error
        except ConnectionError as error:
            raise Failure(f"{self._path}: the server has hung up", status=Exit.PROTOCOL) from error
        except (OSError, ValueError) as error:
            raise Failure(f"{self._path}: {one_line(error)}", status=Exit.PROTOCOL) from error
        if answer is None:
            raise Failure(f"{self._path}: the server has hung up", status=Exit.PROTOCOL)
        if not isinstance(answer, dict) or not isinstance(answer.get("ok"), dict):
            why = answer.get("error") if isinstance(answer, dict) else None
            status = Exit.PROTOCOL if why is None else Exit.FAILED
            raise Failure(f"{self._path}: {why or 'this is no control socket'}", status=status)
        found: dict[str, Any] = answer["ok"]
        return found

    def close(self) -> None:
        """Ends it."""
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()
