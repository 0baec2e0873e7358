"""``vhost-user top``: what a running server does, queue by queue, looked at again and again."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self

from . import client, exposition, table
from .control_client import Connection
from .exits import Exit, Failure
from .parser import checked
from .serve import MAX_INTERVAL, MIN_INTERVAL
from .sizes import about, number_in, seconds_in
from .streams import flush_out, out

HEAD = (
    "queue",
    "IOPS",
    "data/s",
    "p50",
    "p99",
    "gil wait",
    "batch",
    "in flight",
    "oldest",
    "errors",
)

MAX_COUNT = 10**9
"""Intervals: more than anybody waits for."""

CLEAR = "\x1b[H\x1b[2J"
"""Moves to the first place of a terminal and empties it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.add_argument("control", metavar="CONTROL", help="the --control socket of a server")
    parser.add_argument(
        "--interval",
        type=checked(seconds_in(MIN_INTERVAL, MAX_INTERVAL)),
        default=1.0,
        metavar="S",
        help="seconds between two looks (1)",
    )
    parser.add_argument(
        "--count",
        type=checked(number_in(1, MAX_COUNT)),
        metavar="N",
        help="end after so many intervals (never)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each interval")
    client.add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    with Watched(options.control, options.timeout) as server, drawn(in_json=options.json) as show:
        left = options.count
        while left is None or left > 0:
            time.sleep(options.interval)
            title, queues = server.look()
            show(title, queues if options.json else list(filter(is_used, queues)))
            left = None if left is None else left - 1
    return Exit.OK


class Seen:
    """The samples of one moment."""

    def __init__(self, at: float, text: str) -> None:
        self.at = at
        self.samples = exposition.parse(text)


class Watched:
    """A server that is looked at again and again, and whichever follows it at its socket."""

    def __init__(self, path: str, timeout: float) -> None:
        """:class:`Failure` if there is none."""
        self._path, self._timeout = path, timeout
        self._server: Connection | None = Connection(path, timeout)
        self._before = _seen(self._server)

    def look(self) -> tuple[str, list[dict[str, Any]]]:
        """A title, and what each queue has done since the last look; of a server that is not there,
        or was not there then, no queues."""
        try:
            if self._server is None:
                self._server = Connection(self._path, self._timeout)
                self._before = _seen(self._server)
                return _title(self._server), []
            before, self._before = self._before, _seen(self._server)
            return _title(self._server), compare(before, self._before)
        except Failure as failure:
            self._drop()
            return str(failure), []

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._drop()


def _seen(server: Connection) -> Seen:
    return Seen(time.monotonic(), server.ask({"do": "metrics"})["text"])


def _title(server: Connection) -> str:
    found = server.ask({"do": "dump"})
    device, state = found["device"], "paused" if found["paused"] else found["state"]
    return f"{device['class']}: {state}, process {found['pid']}"


def compare(before: Seen, now: Seen) -> list[dict[str, Any]]:
    """What each queue has done between two looks: rates a second, times in seconds. A quantile is
    None if nothing was timed."""
    seconds = max(now.at - before.at, 1e-6)
    queues = sorted({int(labels["queue"]) for labels, _ in now.samples["vhost_user_inflight"]})
    return [_queue(str(queue), before.samples, now.samples, seconds) for queue in queues]


def _queue(
    queue: str, before: exposition.Samples, now: exposition.Samples, seconds: float
) -> dict[str, Any]:
    def more(name: str, **labels: str) -> float:
        of = {"queue": queue, **labels}
        return exposition.total(now, name, of) - exposition.total(before, name, of)

    def quantile(q: float) -> float | None:
        name = "vhost_user_request_seconds_bucket"
        of = {"queue": queue}
        was, buckets = exposition.buckets(before, name, of), exposition.buckets(now, name, of)
        grown = [(bound, count - was.get(bound, 0.0)) for bound, count in sorted(buckets.items())]
        return exposition.quantile(grown, q)

    requests, batches = more("vhost_user_requests_total"), more("vhost_user_batch_size_count")
    wait = more("vhost_user_stage_seconds_sum", stage="gil_wait")
    timed = more("vhost_user_stage_seconds_sum")
    return {
        "queue": int(queue),
        "requests": int(exposition.total(now, "vhost_user_requests_total", {"queue": queue})),
        "iops": requests / seconds,
        "bytes": more("vhost_user_bytes_total") / seconds,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "gil_wait": wait / timed if timed else None,
        "batch": more("vhost_user_batch_size_sum") / batches if batches else None,
        "in_flight": int(exposition.total(now, "vhost_user_inflight", {"queue": queue})),
        "oldest": exposition.total(now, "vhost_user_oldest_inflight_seconds", {"queue": queue}),
        "errors": more("vhost_user_requests_total", status="error") / seconds,
    }


def is_used(queue: dict[str, Any]) -> bool:
    """Whether there has been anything on a queue. Most guests leave most of them alone."""
    return bool(queue["requests"] or queue["in_flight"])


def cells(queue: dict[str, Any]) -> list[str]:
    """A queue as people read it."""
    share, batch = queue["gil_wait"], queue["batch"]
    return [
        str(queue["queue"]),
        f"{queue['iops']:.0f}",
        about(queue["bytes"]),
        duration(queue["p50"]),
        duration(queue["p99"]),
        "-" if share is None else f"{share:.0%}",
        "-" if batch is None else f"{batch:.1f}",
        str(queue["in_flight"]),
        duration(queue["oldest"] or None),
        f"{queue['errors']:.0f}",
    ]


def duration(seconds: float | None) -> str:
    """Seconds in a unit that fits: ``12.5 us``."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


Show = Callable[[str, list[dict[str, Any]]], None]


def drawn(*, in_json: bool) -> AbstractContextManager[Show]:
    """How an interval is shown: as JSON, in place on a terminal, or one below the other."""
    if in_json:
        return nullcontext(_show_json)
    if sys.stdout is None or not sys.stdout.isatty():
        return nullcontext(_show_plain)
    try:
        from .top_rich import Screen
    except ImportError:
        return nullcontext(_show_in_place)
    return Screen(HEAD, cells)


def _show_json(title: str, queues: list[dict[str, Any]]) -> None:
    out(json.dumps({"title": title, "queues": queues}))
    flush_out()


def _show_plain(title: str, queues: list[dict[str, Any]]) -> None:
    out("\n".join([title, table.render([HEAD, *map(cells, queues)]), ""]))
    flush_out()


def _show_in_place(title: str, queues: list[dict[str, Any]]) -> None:
    out("\n".join([f"{CLEAR}{title}", table.render([HEAD, *map(cells, queues)])]))
    flush_out()
