"""What a running back-end can be told, at its control socket."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import VhostUserError
from .limits import DAY

if TYPE_CHECKING:
    from .server import Backend

Order: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]

LEVELS = ("debug", "info", "warning", "error")
"""The least level of the log records that are shown."""

QUANTILES = (0.5, 0.99)
"""Those that a dump has of each time that is measured."""


class Refused(Exception):
    """An order that is not carried out; says why."""


class Orders:
    """What one back-end can be told."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[str, Callable[[Order], Answer]] = {
            "pause": self._pause,
            "resume": self._resume,
            "resize": self._resize,
            "drain": self._drain,
            "log-level": self._log_level,
            "dump": self._dump,
            "metrics": self._metrics,
        }

    def answer(self, line: bytes) -> Answer:
        """Carries out one order."""
        try:
            return {"ok": self._carry_out(line)}
        except (Refused, OSError, ValueError, TypeError, OverflowError, VhostUserError) as error:
            return {"error": str(error)}
        except Exception as error:
            # A device's own method: its author has to know, and the thread goes on.
            logging.getLogger("vhost_user.device").exception("an order failed")
            return {"error": f"{type(error).__name__}: {error}"}

    def _carry_out(self, line: bytes) -> Answer:
        try:
            order = json.loads(line)
        except (ValueError, RecursionError):
            raise Refused("an order is a JSON object on a line of its own") from None
        name = order.get("do") if isinstance(order, dict) else None
        known = self._known.get(name) if isinstance(name, str) else None
        if known is None:
            raise Refused(f"there is no order {name!r}; there are {', '.join(self._known)}")
        return known(order)

    def _pause(self, _order: Order) -> Answer:
        return {"in_effect": self._backend.pause(), "in_flight": self._in_flight()}

    def _resume(self, _order: Order) -> Answer:
        return {"in_effect": self._backend.resume(), "in_flight": self._in_flight()}

    def _resize(self, order: Order) -> Answer:
        device: Any = self._backend.device
        resize = getattr(device, "resize", None)
        if resize is None:
            raise Refused(f"{type(device).__name__} has no size")
        size = _number(order, "size")
        resize(size)
        return {"size": size}

    def _drain(self, order: Order) -> Answer:
        seconds = order.get("seconds", 5.0)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise Refused(f"seconds is a number, not {seconds!r}")
        if not 0 <= seconds <= DAY:
            raise Refused(f"seconds is 0 to {DAY:.0f}, not {seconds}")
        in_flight = self._in_flight()
        self._backend.request_stop(drain=seconds)
        return {"in_flight": in_flight}

    def _log_level(self, order: Order) -> Answer:
        level = order.get("level")
        if level not in LEVELS:
            raise Refused(f"level is one of {', '.join(LEVELS)}, not {level!r}")
        logging.getLogger("vhost_user").setLevel(level.upper())
        return {"level": level}

    def _metrics(self, _order: Order) -> Answer:
        return {"text": self._backend.metrics().prometheus()}

    def _dump(self, _order: Order) -> Answer:
        from . import __version__

        backend, metrics = self._backend, self._backend.metrics()
        times = {name: [metrics.quantile(name, q) for q in QUANTILES] for name in metrics.names}
        return {
            "version": __version__,
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "state": backend.state,
            "paused": backend.is_paused,
            "device": _described(backend.device),
            "queues": [queue._asdict() for queue in backend.stats()],
            "oldest_in_flight": metrics.oldest_in_flight,
            # JSON has no NaN, which stands for what was not seen yet.
            "p50_p99": {name: both for name, both in times.items() if not math.isnan(both[0])},
            "metrics_address": backend.metrics_address,
        }

    def _in_flight(self) -> int:
        return sum(queue.in_flight for queue in self._backend.stats())


def _described(device: Any) -> dict[str, Any]:
    size = getattr(device, "size", None)
    return {
        "class": type(device).__name__,
        "type": device.device_id,
        "num_queues": device.num_queues,
        "queue_size": device.queue_size,
        # Of a device that is no disk it may be anything.
        "size": size if isinstance(size, int) else None,
    }


def _number(order: Order, name: str) -> int:
    value = order.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refused(f"{name} is a number of bytes, not {value!r}")
    return value
