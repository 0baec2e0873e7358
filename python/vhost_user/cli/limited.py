"""Lines on standard error that another process can cause again and again."""

import time
from collections.abc import Callable

from .streams import note

AT_ONCE = 100
"""Lines of one kind that may come at once."""

EVERY = 10.0
"""Seconds after which there may be another one."""


class LimitedNotes:
    """Tells of each kind as much as anybody reads, and counts the rest."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kinds: dict[str, _Lines] = {}

    def tell(self, kind: str, line: str) -> None:
        """Prints the line, unless there were too many of its kind just now. How many were left out
        stands behind the next one that is printed.
        """
        now = self._now()
        lines = self._kinds.setdefault(kind, _Lines(now))
        if lines.may_come(now):
            lines.print(line)
        else:
            lines.leave_out(line)

    def sum_up(self) -> None:
        """Prints what was left out since: the newest of each kind, and how many came before."""
        for lines in self._kinds.values():
            if lines.newest is not None:
                lines.left_out -= 1
                lines.print(lines.newest)


class _Lines:
    """The lines of one kind."""

    def __init__(self, now: float) -> None:
        self.left_out = 0
        self.newest: str | None = None
        self._left = float(AT_ONCE)
        self._grew = now

    def may_come(self, now: float) -> bool:
        self._left = min(float(AT_ONCE), self._left + (now - self._grew) / EVERY)
        self._grew = now
        return self._left >= 1

    def print(self, line: str) -> None:
        count, self.left_out, self.newest = self.left_out, 0, None
        self._left -= 1
        note(f"{line} (and {count} more like it before)" if count else line)

    def leave_out(self, line: str) -> None:
        self.left_out += 1
        self.newest = line
