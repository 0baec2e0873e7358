"""``--stats``: what a server has done, a line on standard error for each interval."""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .sizes import about

if TYPE_CHECKING:
    from vhost_user import QueueStats

JOIN_LIMIT = 1.0
"""Seconds for the thread to end. It waits for nobody, but the machine may be busy."""


@contextmanager
def reported(ask: Callable[[], Sequence["QueueStats"]], seconds: float | None) -> Iterator[None]:
    """Meanwhile tells every ``seconds`` what has been done since the line before, if anything; and
    at the end what is left."""
    if seconds is None:
        yield
        return
    report, end = _Report(ask), threading.Event()

    def run() -> None:
        while not end.wait(seconds):
            report.tell()

    thread = threading.Thread(target=run, name="vhost-user-stats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(JOIN_LIMIT)
        report.tell()


class _Report:
    """What was told last, and when."""

    def __init__(self, ask: Callable[[], Sequence["QueueStats"]]) -> None:
        self._ask = ask
        # The numbers count from the start of the back-end, which was just now.
        self._told = [queue._replace(**dict.fromkeys(queue._fields, 0)) for queue in ask()]
        self._at = time.monotonic()

    def tell(self) -> None:
        now, at = list(self._ask()), time.monotonic()
        line = describe(self._told, now, at - self._at)
        # A line that nobody takes is not kept: the next has its numbers too.
        if line is None or _written(line):
            self._told, self._at = now, at


def describe(
    before: Sequence["QueueStats"], now: Sequence["QueueStats"], seconds: float
) -> str | None:
    """The difference in words, all queues together; None if nothing happened and nothing is in
    flight."""

    def total(name: str) -> int:
        return sum(getattr(b, name) - getattr(a, name) for a, b in zip(before, now, strict=True))

    requests, data = total("requests"), total("bytes")
    others = {name: total(name) for name in ("errors", "kicks", "calls")}
    in_flight = sum(queue.in_flight for queue in now)
    if not (requests or in_flight or any(others.values())):
        return None
    seconds = max(seconds, 1e-3)
    words = [
        f"{requests} requests ({requests / seconds:.0f}/s)",
        f"{about(data)} ({about(data / seconds)}/s)",
        *(f"{count} {name}" for name, count in others.items()),
        f"{in_flight} in flight",
    ]
    return f"stats: {seconds:.1f} s: {', '.join(words)}"


def _written(line: str) -> bool:
    """Writes a line to standard error, past Python's buffer and its lock, if there is room for it
    now: a reader that has stopped to read must not hold the server's end up."""
    try:
        descriptor = sys.stderr.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not any(event & select.POLLOUT for _, event in poll.poll(0)):
            return False
        os.write(descriptor, f"{line}\n".encode())
    except (AttributeError, OSError, ValueError):
        return True  # There is no such place, or nobody is there any more.
    return True
