"""Counts a process's calls of the grant device, by the kernel's own trace of system calls."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Self

from .gntdev import GRANT_COPY, MAP_GRANT_REF, UNMAP_GRANT_REF

TRACING = Path("/sys/kernel/tracing")
COMMANDS = {MAP_GRANT_REF: "map", UNMAP_GRANT_REF: "unmap", GRANT_COPY: "copy"}
BUFFER_KIB = "4096"


class GrantCalls:
    """Counts from ``with`` to its end, of the threads that ``process`` has at the beginning."""

    def __init__(self, process: int) -> None:
        self.counts: Counter[str] = Counter()
        self._instance = TRACING / "instances" / f"grants-{process}"
        self._threads = os.listdir(f"/proc/{process}/task")

    def __enter__(self) -> Self:
        self._instance.mkdir()
        self._write("buffer_size_kb", BUFFER_KIB)
        self._write("set_event_pid", " ".join(self._threads))
        self._write("events/syscalls/sys_enter_ioctl/enable", "1")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("tracing_on", "0")
        trace = (self._instance / "trace").read_text()
        for command in re.findall(r"sys_ioctl\(fd: \w+, cmd: (\w+)", trace):
            if name := COMMANDS.get(int(command, 16)):
                self.counts[name] += 1
        self._write("events/syscalls/sys_enter_ioctl/enable", "0")
        self._instance.rmdir()

    def _write(self, name: str, value: str) -> None:
        (self._instance / name).write_text(value)
