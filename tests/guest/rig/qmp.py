"""QEMU's monitor. Source: QEMU, "QEMU Machine Protocol Specification"."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

from rig.deadline import Deadline

from .line_socket import LineSocket


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """A monitor connection, past its greeting once the first command was sent."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = LineSocket(connection)
        self._greeted = False

    def command(
        self, name: str, arguments: Mapping[str, object] | None = None, *, seconds: float = 30
    ) -> Any:
        """Run one command and return its result. Events that arrive meanwhile are dropped."""
        deadline = Deadline(seconds)
        if not self._greeted:
            self._lines.receive(deadline)
            self._greeted = True
            self.command("qmp_capabilities", seconds=seconds)
        request = {"execute": name, "arguments": arguments or {}}
        self._lines.send(json.dumps(request).encode(), deadline)
        while True:
            answer = json.loads(self._lines.receive(deadline))
            if "error" in answer:
                raise QmpError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._lines.close()
