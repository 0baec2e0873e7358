"""Counts what a process asks of the grant device, by the kernel's own trace of system calls."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from .gntdev import GRANT_COPY, MAP_GRANT_REF, UNMAP_GRANT_REF
from .privcmd import MMAPBATCH_V2, RESTRICT

TRACING = Path("/sys/kernel/tracing")
COMMANDS = {MAP_GRANT_REF: "map", UNMAP_GRANT_REF: "unmap", GRANT_COPY: "copy"}
FOREIGN_COMMANDS = {RESTRICT: "restrict", MMAPBATCH_V2: "map"}
BUFFER_KIB = "16384"
EVENTS = ("enter_ioctl", "enter_mmap", "exit_mmap", "enter_munmap", "enter_io_submit")
LEAST_ERROR = 2**64 - 4095
"""From here on a result is the negative number of an error."""

WRITTEN = re.compile(r"entries-in-buffer/entries-written: (\d+)/(\d+)")
LINE = re.compile(r"-(?P<thread>\d+) +\[\d+\].*?: sys_(?P<call>\w+)(?P<rest>.*)")
NUMBER = re.compile(r"(\w+): (?:0x)?([0-9a-f]+)|-> 0x([0-9a-f]+)")


class Call(NamedTuple):
    """One end of a system call of one thread; a result has no arguments."""

    thread: str
    name: str
    arguments: dict[str, int]
    result: int | None

    def is_done(self) -> bool:
        """Whether this is the result of a call that did not fail."""
        return self.result is not None and self.result < LEAST_ERROR


class GrantCalls:
    """Counts from ``with`` to its end, of all threads that ``process`` has or gets.

    ``counts`` has the calls by name: ``map``, ``unmap`` and ``copy`` are those of the device, and
    ``release`` is an area of granted pages that was taken out of the process's memory. ``batches``
    has the same for each batch of requests, which ends when the thread signals an eventfd: the
    driver's call, if the driver wants one for each publication. ``left`` is how many areas were
    still mapped at that moment. ``foreign`` names the calls of the device for foreign mapping.
    """

    def __init__(self, process: int) -> None:
        self.counts: Counter[str] = Counter()
        self.batches: list[Counter[str]] = []
        self.foreign: list[str] = []
        self._instance = TRACING / "instances" / f"grants-{process}"
        self._threads = os.listdir(f"/proc/{process}/task")

    def __enter__(self) -> Self:
        self._instance.mkdir()
        self._write("buffer_size_kb", BUFFER_KIB)
        self._write("options/event-fork", "1")
        self._write("set_event_pid", " ".join(self._threads))
        self._enable("1")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("tracing_on", "0")
        trace = (self._instance / "trace").read_text()
        self._enable("0")
        self._instance.rmdir()
        self._count(trace)

    def _enable(self, on: str) -> None:
        for event in EVENTS:
            self._write(f"events/syscalls/sys_{event}/enable", on)

    def _write(self, name: str, value: str) -> None:
        (self._instance / name).write_text(value)

    def _count(self, trace: str) -> None:
        kept, written = WRITTEN.findall(trace)[0]
        assert kept == written, f"{kept} events of {written} are in the trace"
        areas: dict[int, str] = {}
        threads: dict[str, Thread] = defaultdict(lambda: Thread(areas))
        for call in calls(trace):
            thread = threads[call.thread]
            if name := thread.name(call):
                self.counts[name] += 1
                thread.batch[name] += 1
            elif name := FOREIGN_COMMANDS.get(call.arguments.get("cmd", 0)):
                self.foreign.append(name)
            elif thread.ends_batch(call):
                self.batches.append(thread.take_batch(call.thread))


class Thread:
    """What one thread did since its last signal. ``areas``: what is mapped, and by which."""

    def __init__(self, areas: dict[int, str]) -> None:
        self.batch: Counter[str] = Counter()
        self._areas = areas
        self._device = -1
        self._maps_device = False

    def name(self, call: Call) -> str | None:
        """What the call is counted as, if at all."""
        if call.name == "ioctl" and (name := COMMANDS.get(call.arguments["cmd"])):
            self._device = call.arguments["fd"]
            return name
        if call.name == "mmap" and call.result is None:
            self._maps_device = call.arguments["fd"] == self._device
        elif call.name == "mmap" and self._maps_device and call.is_done():
            assert call.result is not None
            self._areas[call.result] = call.thread
        elif call.name == "munmap" and call.arguments["addr"] in self._areas:
            del self._areas[call.arguments["addr"]]
            return "release"
        return None

    def ends_batch(self, call: Call) -> bool:
        """Whether it signals the driver's eventfd, by asynchronous I/O so that it never waits, and
        something was asked of the device before."""
        return call.name == "io_submit" and bool(self.batch)

    def take_batch(self, thread: str) -> Counter[str]:
        batch, self.batch = self.batch, Counter()
        batch["left"] = list(self._areas.values()).count(thread)
        return batch


def calls(trace: str) -> Iterator[Call]:
    """The system calls of a trace, in order."""
    for line in LINE.finditer(trace):
        arguments, result = {}, None
        for name, value, returned in NUMBER.findall(line["rest"]):
            if returned:
                result = int(returned, 16)
            else:
                arguments[name] = int(value, 16)
        yield Call(line["thread"], line["call"], arguments, result)
