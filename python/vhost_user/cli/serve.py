"""What all commands that serve a device have in common."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from vhost_user.limits import (
    DAY,
    MAX_BATCH,
    MAX_CPU,
    MAX_FD,
    MAX_GROUP,
    MAX_POLL_US,
    MAX_SIZE,
    MAX_THREADS,
)

from . import stats, xen
from .device_types import BLOCK, type_name
from .exits import Exit, Failure, one_line
from .held import is_held
from .lines import FORMATS
from .parser import Once, checked
from .sizes import format_size, number_in, seconds_in
from .streams import note

SWITCH_INTERVAL = 0.0005
"""Seconds after which a Python thread that wants the interpreter gets it. A worker waits that
long for device code of another thread; the interpreter's own 5 ms would show in every request."""

LEVELS = ("debug", "info", "warning", "error")

MIN_INTERVAL, MAX_INTERVAL = 0.1, 86400.0
"""Seconds between two lines of ``--stats``."""


class Ended(BaseException):
    """A signal asked for the end before, or after, the back-end itself listens to signals."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every server."""
    from . import captive, hold

    socket = parser.add_argument_group("the socket")
    add_socket_options(socket)
    socket.add_argument(
        "--hold",
        action="store_true",
        help="serve in a second process, and keep the front-end connected when it dies or is "
        "upgraded (SIGHUP)",
    )
    hold.add_options(socket)
    captive.add_option(socket)
    memory = parser.add_argument_group("guest memory")
    memory.add_argument(
        "--any-memory-file",
        action="store_true",
        help="take files on FUSE and network file systems too, which hang the device when their "
        "server stops to answer",
    )
    xen.add_options(parser.add_argument_group("Xen"))
    _add_tuning(parser.add_argument_group("threads and errors"))


def add_socket_options(socket: argparse._ArgumentGroup) -> None:
    """Adds the options that say where front-ends come from."""
    socket.add_argument(
        "--socket-path", action=Once, metavar="PATH", help="listen here; the path is used as given"
    )
    socket.add_argument(
        "--fd",
        action=Once,
        type=checked(number_in(0, MAX_FD)),
        metavar="N",
        help="instead, use this inherited descriptor: a socket that listens or is connected",
    )
    socket.add_argument(
        "--connect", action="store_true", help="dial --socket-path, where a front-end listens"
    )
    socket.add_argument(
        "--mode", type=checked(_mode), metavar="OCTAL", help="the socket file's mode (0600)"
    )
    socket.add_argument(
        "--group",
        type=checked(_group),
        metavar="NAME",
        help="the socket file's group, or its number",
    )
    socket.add_argument("--once", action="store_true", help="end when the first front-end has left")


def _add_tuning(tuning: argparse._ArgumentGroup) -> None:
    tuning.add_argument(
        "--threads",
        type=checked(_threads),
        metavar="N",
        help="worker threads for all queues together (one for each queue)",
    )
    tuning.add_argument(
        "--cpus", type=checked(_cpus), metavar="LIST", help="pin workers, in turns: 0,2-3"
    )
    tuning.add_argument(
        "--batch",
        type=checked(number_in(1, MAX_BATCH)),
        metavar="N",
        help="most requests handled at once",
    )
    tuning.add_argument(
        "--poll-us",
        type=checked(number_in(0, MAX_POLL_US)),
        metavar="N",
        help="longest busy polling before a worker sleeps, in microseconds; 0: none",
    )
    tuning.add_argument(
        "--drain",
        type=checked(seconds_in(0, DAY)),
        metavar="SECONDS",
        help="how long requests have to come back when the front-end stops a queue (30)",
    )
    tuning.add_argument(
        "--copy-budget",
        type=checked(number_in(0, MAX_SIZE)),
        metavar="BYTES",
        help="most bytes of a queue's private copies of data that lies in pieces (64M)",
    )
    tuning.add_argument(
        "--total-copy-budget",
        type=checked(number_in(0, MAX_SIZE)),
        metavar="BYTES",
        help="the same of all queues together (1G)",
    )
    tuning.add_argument(
        "--on-error",
        choices=("report", "stop"),
        default="report",
        help="after an exception in the device: report it and go on (default), or stop",
    )
    shown = tuning.add_mutually_exclusive_group()
    shown.add_argument(
        "--log-level", choices=LEVELS, default="warning", help="least level shown (warning)"
    )
    shown.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="show records of level info too, and those of level debug if given twice",
    )
    add_log_format(tuning)
    tuning.add_argument(
        "--metrics",
        type=checked(_metrics_address),
        metavar="ADDRESS",
        help="measure, and give the numbers away to Prometheus: unix:PATH, 127.0.0.1:PORT or "
        "file:PATH",
    )
    tuning.add_argument(
        "--control",
        metavar="PATH",
        help="take orders of vhost-user ctl at this socket, and let vhost-user top look",
    )
    tuning.add_argument(
        "--stats",
        type=checked(seconds_in(MIN_INTERVAL, MAX_INTERVAL)),
        metavar="SECONDS",
        help="tell on standard error what was done in each so many seconds, if anything was",
    )


def add_log_format(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Adds ``--log-format``."""
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default="text",
        help="how lines on standard error are written: for people (text), as a JSON object each, "
        "or with their priority for systemd's journal",
    )


def endpoint(options: argparse.Namespace) -> str:
    """Where the device is to be found, in words. :class:`Failure` if that is not clear."""
    path, fd = options.socket_path, options.fd
    if path is not None and fd is not None:
        raise Failure("--socket-path PATH or --fd N: not both", status=Exit.USAGE)
    if options.connect and path is None:
        raise Failure("--connect needs --socket-path", status=Exit.USAGE)
    if path is not None:
        return f"calling {path}" if options.connect else f"listening on {path}"
    if fd is not None:
        _check_open(fd)
        return f"serving descriptor {fd}"
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return "listening where the service manager does"
    raise Failure("--socket-path PATH or --fd N: one is needed", status=Exit.USAGE)


def _check_open(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        what = f"descriptor {fd} is not open here; let the parent process pass it on"
        raise Failure(what) from error


def until_signalled(body: Callable[[], int]) -> int:
    """Runs ``body``, which SIGTERM and SIGINT end quietly."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return body()
    except Ended:
        from vhost_user import systemd

        systemd.notify("STOPPING=1")
        return Exit.OK
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(
    device: Any, options: argparse.Namespace, listening: Callable[[], None] = lambda: None
) -> int:
    """Serves ``device`` until a signal or the device itself ends it. Calls ``listening`` when
    front-ends can connect."""
    from vhost_user import Backend, VhostUserError, set_total_copy_budget

    from .log import to_stderr

    where, given = endpoint(options), _backend_options(options)
    to_stderr(_level(options))
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        if options.total_copy_budget is not None:
            set_total_copy_budget(options.total_copy_budget)
        backend = Backend(device, **given)
        backend._is_held = is_held()  # noqa: SLF001 - no option for others
        backend.start()
    except (OSError, ValueError, VhostUserError) as error:
        raise Failure(one_line(error)) from error
    except Exception as error:  # The class is not what it should be.
        what = f"{type(error).__name__}: {one_line(error)}"
        raise Failure(f"cannot serve {type(device).__name__}: {what}") from error
    try:
        words = [summary(device)] + ([xen.summary(given["xen"])] if "xen" in given else [])
        with stats.reported(backend.stats, options.stats):
            if not is_held():
                note(f"{where}  {'  '.join(words)}")
            listening()
            backend.run()
    except Exception as error:
        backend.stop()
        what = f"{type(error).__name__}: {one_line(error)}"
        raise Failure(f"{type(device).__name__} failed: {what}") from error
    except BaseException:
        backend.stop()
        raise
    return Exit.OK


def summary(device: Any) -> str:
    """A device in a few words: ``blk 64 MiB 1 queue``."""
    words = ["blk" if device.device_id == BLOCK else type_name(device.device_id)]
    if hasattr(device, "size"):
        words.append(format_size(device.size))
    count = device.num_queues
    words.append("1 queue" if count == 1 else f"{count} queues")
    return " ".join(words)


def _backend_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :class:`vhost_user.Backend`; what was not given has its defaults."""
    given = {
        "socket": options.socket_path,
        "fd": options.fd,
        "connect": options.connect or None,
        "keep_listening": False if options.once else None,
        "mode": options.mode,
        "group": options.group,
        "threads": options.threads,
        "cpus": options.cpus,
        "batch": options.batch,
        "poll_us": options.poll_us,
        "drain": options.drain,
        "any_memory_file": options.any_memory_file or None,
        "copy_budget": options.copy_budget,
        "on_error": options.on_error,
        "xen": xen.xen_options(options),
        "metrics": options.metrics,
        "control": options.control,
    }
    return {name: value for name, value in given.items() if value is not None}


def _level(options: argparse.Namespace) -> str:
    """The least level of log records that are shown; each ``-v`` is one lower."""
    least = LEVELS.index(options.log_level)
    return LEVELS[max(0, least - options.verbose)]


def _metrics_address(text: str) -> str:
    from vhost_user.server import metrics_address

    return metrics_address(text)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ValueError(f"{text!r} is not an octal mode such as 0660")
    return mode


def _group(text: str) -> str | int:
    if not text:
        raise ValueError("'' is neither the name of a group nor its number")
    return number_in(0, MAX_GROUP)(text) if text.lstrip("-").isdecimal() else text


def _threads(text: str) -> int | str:
    try:
        return text if text == "per-queue" else number_in(1, MAX_THREADS)(text)
    except ValueError as error:
        raise ValueError(f"{error}, nor per-queue") from None


def _cpus(text: str) -> list[int]:
    """Processor numbers and ranges of them: ``0,2-3``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise ValueError(f"{text!r} is not a list of processors such as 0,2-3")
        if int(ends[1]) > MAX_CPU:
            raise ValueError(f"{text!r} has a processor past {MAX_CPU}, the last there can be")
        numbers.extend(range(int(ends[0]), int(ends[1]) + 1))
    return numbers
