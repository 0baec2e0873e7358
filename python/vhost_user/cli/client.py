"""What all commands that talk to a back-end have in common."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from vhost_user.limits import DAY

from .exits import Exit, Failure, one_line
from .parser import checked
from .sizes import seconds_in

TIMEOUT = 5.0
"""Seconds that a back-end has for each answer, and to take the connection."""

MIN_TIMEOUT = 0.001
"""The least of it: no answer takes no time."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every client command."""
    parser.add_argument("socket", metavar="SOCKET", help="where the back-end listens")
    parser.add_argument("--json", action="store_true", help="print JSON, with fixed names")
    add_timeout(parser)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Adds ``--timeout``."""
    parser.add_argument(
        "--timeout",
        type=checked(seconds_in(MIN_TIMEOUT, DAY)),
        default=TIMEOUT,
        metavar="S",
        help=f"longest wait for the connection and for each answer ({TIMEOUT:g} s)",
    )


@contextmanager
def connected(path: str, timeout: float) -> Iterator[int]:
    """A connection to the back-end at ``path``, as a descriptor.

    Errors of the body that are the back-end's fault end the command with the right status.
    """
    from socket import AF_UNIX, socket

    from vhost_user import RequestError, VhostUserError

    with socket(AF_UNIX) as stream:
        try:
            stream.settimeout(timeout)
            stream.connect(path)
        except OSError as error:
            absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            hint = "; does a back-end listen there?" if absent else ""
            what = f"cannot connect to {path}: {one_line(error)}{hint}"
            raise Failure(what, status=Exit.UNREACHABLE) from error
        try:
            yield stream.fileno()
        except RequestError as error:
            raise Failure(f"{path}: {one_line(error)}") from error
        except TimeoutError as error:
            what = f"{path}: {one_line(error)}; is another front-end connected?"
            raise Failure(what, status=Exit.UNREACHABLE) from error
        except (VhostUserError, ConnectionError) as error:
            raise Failure(f"{path}: {one_line(error)}", status=Exit.PROTOCOL) from error
        except (OSError, ValueError) as error:
            raise Failure(f"{path}: {one_line(error)}") from error
