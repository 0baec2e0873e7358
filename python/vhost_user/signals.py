"""SIGTERM and SIGINT as something to wait for."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

STOP = (signal.SIGTERM, signal.SIGINT)


class Hurried(BaseException):
    """Another signal came: nothing more is to be waited for."""


class StopSignals:
    """While entered, SIGTERM and SIGINT do nothing but end ``wait``.

    Through the signal wake-up descriptor, so that a wait ends at once whatever other threads do.
    Only the main thread can have this; in others ``wait`` hears of no signal.
    """

    def __init__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        self._raises = False

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._main:
            self._former_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._former = {number: signal.signal(number, self._heard) for number in STOP}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._main:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._former_fd)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, fd: int, timeout: float | None = None) -> bool:
        """Waits until ``fd`` is readable or ``timeout`` seconds are over; true: a signal came."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(fd, select.POLLIN)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            ready = {number for number, _ in poll.poll(left)}
            # One byte at a time: a second signal may have come at once, and is another wait's.
            # Other signals of the process end up here as well.
            if self._reader in ready and os.read(self._reader, 1)[0] in STOP:
                return True
            if fd in ready or not ready:
                return False

    @contextmanager
    def raised(self) -> Iterator[None]:
        """While entered, a signal raises ``Hurried``, in what waits for something else."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """The wake-up descriptor has it already."""
        if self._raises:
            self._raises = False
            raise Hurried
