"""Log records on standard error, in the form of all lines there."""

import logging
import os
import sys
import warnings

from .lines import is_plain, line

STDERR = 2


class Line(logging.Formatter):
    """``warning: text``, with the traceback below it if there is one; or in the other forms."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        level = record.levelname.lower()
        if is_plain():
            return f"{level}: {super().format(record)}"
        trace = self.formatException(record.exc_info) if record.exc_info else None
        text = record.getMessage()
        more = {"thread": record.threadName}
        at = record.created
        return line(text, level=level, logger=record.name, at=at, exception=trace, more=more)


class Stderr(logging.Handler):
    """Writes straight to standard error, and holds no lock meanwhile.

    Whoever reads it may stall, for ever: then the thread that hands over records waits. Nothing
    that the process needs for its end may be in the hands of that thread.
    """

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    def createLock(self) -> None:  # noqa: N802 - the base's name
        """There is none: a record is one write, and few are so long that the kernel mixes them."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """As its base, without a lock."""
        passed = self.filter(record)
        if passed:
            # From CPython 3.12 on a filter may give another record.
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record, unless nobody reads any more."""
        try:
            left = f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")
            while left:
                left = left[os.write(STDERR, left) :]
        except OSError:
            pass
        except Exception:
            self.handleError(record)


def to_stderr(level: str) -> None:
    """Shows records of ``level`` and above, of the package and of devices, and Python's warnings of
    what was not let go."""
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:
        handler = Stderr(sys.stderr.encoding)
    handler.setFormatter(Line("%(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    warnings.simplefilter("default", ResourceWarning)
