"""A point in time by which a wait must have ended."""

from __future__ import annotations

import time


class Deadline:
    """``seconds`` from now. One deadline covers all the waits of one step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())
