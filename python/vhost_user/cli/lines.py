"""Lines on standard error, in the form that was asked for: ``--log-format``."""

import os
import time
from collections.abc import Mapping

FORMATS = ("text", "json", "journal")

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of log levels, as systemd's journal has them: sd-daemon(3)."""

_format = "text"


def set_format(name: str) -> None:
    """From now on lines have this form."""
    global _format
    _format = name


def is_plain() -> bool:
    """Whether lines are for people alone."""
    return _format == "text"


def line(
    text: str,
    *,
    level: str = "info",
    logger: str = "vhost_user.cli",
    at: float | None = None,
    exception: str | None = None,
    more: Mapping[str, object] | None = None,
) -> str:
    """A message as one line, or with an exception as some; without the end of the last.

    ``at``: seconds since 1970, now if it is None. ``exception``: a traceback. ``more``: fields of
    the message, which JSON has beside its text.
    """
    if _format == "json":
        return _as_json(text, level, logger, time.time() if at is None else at, exception, more)
    whole = text if exception is None else f"{text}\n{exception}"
    if _format == "journal":
        return "\n".join(f"<{PRIORITIES.get(level, 6)}>{part}" for part in whole.split("\n"))
    return whole


def _as_json(
    text: str,
    level: str,
    logger: str,
    at: float,
    exception: str | None,
    more: Mapping[str, object] | None,
) -> str:
    import json

    fields: dict[str, object] = {
        "time": _utc(at),
        "level": level,
        "logger": logger,
        "message": text,
        "pid": os.getpid(),
    }
    if exception is not None:
        fields["exception"] = exception
    # What is no ASCII is escaped, so that bytes of file names that are no text do not matter.
    return json.dumps({**fields, **(more or {})})


def _utc(at: float) -> str:
    """A time as RFC 3339 has it, to the microsecond."""
    seconds, micros = divmod(round(at * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06}Z"
