"""``vhost-user ctl``: gives orders to a running server."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from vhost_user.limits import DAY

from . import client
from .control_client import Connection
from .exits import Exit, Failure
from .serve import LEVELS
from .sizes import format_size, parse_size, seconds_in
from .streams import out

ORDERS = {
    "pause": "take no more requests from the guest, and wait for those in flight",
    "resume": "take requests again",
    "resize": "change the size of the disk to VALUE, as 64M, and tell the guest",
    "drain": "end the server when the requests in flight are done, or after VALUE seconds (5)",
    "log-level": f"show log records from VALUE on: {', '.join(LEVELS)}",
    "dump": "print all that is known of the server, as JSON",
}

ASK_AGAIN = 0.05
"""Seconds between two looks at what is in flight."""


def _level(text: str) -> str:
    if text not in LEVELS:
        raise ValueError(f"{text!r} is none of {', '.join(LEVELS)}")
    return text


VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "resize": ("size", parse_size),
    "drain": ("seconds", seconds_in(0, DAY)),
    "log-level": ("level", _level),
}
"""What an order takes: the field that it goes into, and how it is read."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    width = max(map(len, ORDERS))
    lines = (f"  {name:{width}}  {summary}" for name, summary in ORDERS.items())
    parser.epilog = "\n".join(["orders:", *lines])
    parser.add_argument("control", metavar="CONTROL", help="the --control socket of a server")
    parser.add_argument("order", choices=list(ORDERS), metavar="ORDER", help=", ".join(ORDERS))
    parser.add_argument("value", nargs="?", metavar="VALUE", help="what some orders take")
    client.add_timeout(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    told = order(options)
    with Connection(options.control, options.timeout) as server:
        answer = server.ask(told)
        if options.order == "pause":
            _wait(server, answer, options.timeout)
        out(_told(options.order, answer))
    return Exit.OK


def order(options: argparse.Namespace) -> dict[str, Any]:
    """What the server is told. :class:`Failure` if the value is missing, wrong or too much."""
    name, value = options.order, options.value
    field, convert = VALUES.get(name, ("", str))
    if value is None:
        if field and name != "drain":
            raise Failure(f"{name} needs a value: its {field}", status=Exit.USAGE)
        return {"do": name}
    if not field:
        raise Failure(f"{name} takes no value, and was given {value}", status=Exit.USAGE)
    try:
        return {"do": name, field: convert(value)}
    except ValueError as error:
        raise Failure(f"{name}: {error}", status=Exit.USAGE) from None


def _wait(server: Connection, answer: dict[str, Any], timeout: float) -> None:
    """Waits until nothing is taken or in flight; ``answer``: to the first order."""
    until = time.monotonic() + timeout
    while not answer["in_effect"] or answer["in_flight"]:
        if time.monotonic() > until:
            count = answer["in_flight"]
            raise Failure(f"paused, but {count} in flight are not back after {timeout:g} s")
        time.sleep(ASK_AGAIN)
        answer = server.ask({"do": "pause"})


def _told(order: str, answer: dict[str, Any]) -> str:
    match order:
        case "pause":
            return "paused"
        case "resume":
            return "running"
        case "resize":
            return f"size: {answer['size']} bytes ({format_size(answer['size'])})"
        case "drain":
            return f"ending: {answer['in_flight']} in flight"
        case "log-level":
            return f"log level: {answer['level']}"
        case _:
            return json.dumps(answer, indent=2)
