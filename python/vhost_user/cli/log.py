"""Log records on standard error, as plain lines."""

import logging
import sys
import warnings


class Plain(logging.Formatter):
    """``warning: text``, with the traceback below it if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return f"{record.levelname.lower()}: {super().format(record)}"


def to_stderr(level: str) -> None:
    """Shows records of ``level`` and above, of the package and of devices, and warnings that a
    device holds on to a request's data."""
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain("%(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    warnings.simplefilter("default", ResourceWarning)
