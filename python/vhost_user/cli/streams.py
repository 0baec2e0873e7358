"""What the command prints, and the descriptors it prints to."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .exits import Failure, Unread
from .lines import line as as_line

FLUSH_LIMIT = 1.0
"""Seconds that a reader of standard error has at the end."""


def keep_standard_descriptors() -> None:
    """Opens ``/dev/null`` wherever a standard descriptor is closed.

    Else a socket or a guest's memory would get such a number, and whatever writes to "standard
    error" would write there.
    """
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        os.set_inheritable(null, True)
        null = os.open(os.devnull, os.O_RDWR)
    os.close(null)


def show_any_name() -> None:
    """Lets names of files be printed that are no text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def out(line: str) -> None:
    """Prints a line of the result."""
    if sys.stdout is not None:
        with _writing():
            sys.stdout.write(line + "\n")


def flush_out() -> None:
    """Sends what was printed on its way, so that a full disk is an error and not silence."""
    if sys.stdout is not None:
        with _writing():
            sys.stdout.flush()


TROUBLE = "vhost-user: "
"""What a line begins with that tells of something wrong."""


def note(text: str, level: str | None = None) -> None:
    """Tells the user something, on standard error, whether or not anybody reads it. ``level`` is
    that of a log record, for those who have asked for lines that have one."""
    if sys.stderr is None:
        return
    if level is None:
        level = "warning" if text.startswith(TROUBLE) else "info"
    try:
        sys.stderr.write(as_line(text, level=level) + "\n")
        sys.stderr.flush()
    except OSError:
        pass


def forget_unread_notes() -> bool:
    """Drops what standard error holds and nobody takes.

    Else the interpreter would try to write it at its very end, fail, and turn that into the exit
    status. False: somebody reads it, but takes nothing, and a thread waits for that with a lock
    that the interpreter needs for its end.
    """
    flushing = threading.Thread(target=_flush_notes, daemon=True)
    flushing.start()
    flushing.join(FLUSH_LIMIT)
    return not flushing.is_alive()


def _flush_notes() -> None:
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _to_nowhere(2)


def _to_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is still in the buffer goes nowhere: the interpreter must not try again at its end.
        _to_nowhere(1)
        if isinstance(error, BrokenPipeError):
            raise Unread from error
        raise Failure(f"cannot write the output: {error.strerror}") from error
