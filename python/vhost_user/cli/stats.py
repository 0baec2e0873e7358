"""``--stats``: what a server has done, a line on standard error for each interval."""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .lines import line
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


COUNTED = ("requests", "bytes", "errors", "kicks", "calls")
"""The numbers of a queue that only grow."""


class _Report:
    """What was told last, and when."""

    def __init__(self, ask: Callable[[], Sequence["QueueStats"]]) -> None:
        self._ask = ask
        # The numbers count from the start of the back-end, which was just now.
        self._told = [queue._replace(**dict.fromkeys(queue._fields, 0)) for queue in ask()]
        self._at = time.monotonic()

    def tell(self) -> None:
        now, at = list(self._ask()), time.monotonic()
        done = difference(self._told, now)
        # A line that nobody takes is not kept: the next has its numbers too.
        if not any(done.values()) or _written(_line(done, at - self._at)):
            self._told, self._at = now, at


def difference(before: Sequence["QueueStats"], now: Sequence["QueueStats"]) -> dict[str, int]:
    """What was done in between, all queues together, and what is in flight."""
    done = {
        name: sum(getattr(b, name) - getattr(a, name) for a, b in zip(before, now, strict=True))
        for name in COUNTED
    }
    return {**done, "in_flight": sum(queue.in_flight for queue in now)}


def _line(done: dict[str, int], seconds: float) -> str:
    numbers: dict[str, object] = {"seconds": round(seconds, 3), **done}
    return line(describe(done, seconds), logger="vhost_user.stats", more={"stats": numbers})


def describe(done: dict[str, int], seconds: float) -> str:
    """What was done in so many seconds, in words."""
    seconds = max(seconds, 1e-3)
    requests, data = done["requests"], done["bytes"]
    others = {name: done[name] for name in ("errors", "kicks", "calls")}
    words = [
        f"{requests} requests ({requests / seconds:.0f}/s)",
        f"{about(data)} ({about(data / seconds)}/s)",
        *(f"{count} {name}" for name, count in others.items()),
        f"{done['in_flight']} in flight",
    ]
    return f"stats: {seconds:.1f} s: {', '.join(words)}"


def _written(text: str) -> bool:
    """Writes a line to standard error, past Python's buffer and its lock, if there is room for it
    now: a reader that has stopped to read must not hold the server's end up."""
    try:
        descriptor = sys.stderr.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not any(event & select.POLLOUT for _, event in poll.poll(0)):
            return False
        os.write(descriptor, f"{text}\n".encode())
    except (AttributeError, OSError, ValueError):
        return True  # There is no such place, or nobody is there any more.
    return True
