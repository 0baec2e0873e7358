"""``vhost-user hold``: keeps front-ends connected while a back-end dies or is upgraded."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from . import captive
from .captive import serve_beside
from .exits import Exit, Failure, one_line
from .lines import set_format
from .parser import Once, checked
from .serve import add_log_format, add_socket_options, endpoint, until_signalled
from .sizes import number_in

if TYPE_CHECKING:
    from .keeper import Keeper

GIVE_UP_AFTER = 8
"""How many back-ends in a row may die at once."""

MAX_BACK_ENDS = 1000000
"""The most that may be asked for."""

OWN = {
    "--socket-path": True,
    "--fd": True,
    "--connect": False,
    "--mode": True,
    "--group": True,
    "--once": False,
    "--hold": False,
    "--reload": False,
    "--give-up-after": True,
    "--run": True,
}
"""Options of ``blk`` and ``run`` that are the keeper's, and whether they have a value."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.usage = "vhost-user hold SOCKET [options] -- COMMAND [arguments]"
    parser.epilog = (
        "The command is a back-end that finds its socket as descriptor 3, listening (LISTEN_FDS): "
        "vhost-user blk\nand run, and others with an option such as --fd=3. SIGHUP has the command "
        "run anew, and the new process\ntake the place of the old one."
    )
    parser.add_argument(
        "socket", nargs="?", metavar="SOCKET", help="listen here; the same as --socket-path"
    )
    socket = parser.add_argument_group("the socket")
    add_socket_options(socket)
    captive.add_option(socket)
    add_options(parser)
    add_log_format(parser)


def add_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the options that the short forms have too."""
    parser.add_argument(
        "--give-up-after",
        action=Once,
        type=checked(number_in(0, MAX_BACK_ENDS)),
        metavar="N",
        help="end when so many back-ends in a row have died within a second "
        f"({GIVE_UP_AFTER}); 0: never",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    if not options.command:
        what = "a command is needed behind --: vhost-user hold SOCKET -- vhost-user blk IMAGE"
        raise Failure(what, status=Exit.USAGE)
    if options.socket is not None and options.socket_path is not None:
        raise Failure("SOCKET or --socket-path PATH: not both", status=Exit.USAGE)
    options.socket_path = options.socket_path or options.socket
    set_format(options.log_format)
    return serve_beside(options, lambda listening: keep(options, options.command, listening))


def around(
    options: argparse.Namespace, listening: Callable[[], None], *, watched: bool = False
) -> int:
    """Holds the very command that was given, which is then run without its socket. Calls
    ``listening`` when front-ends can connect."""
    name, *rest = options.given
    command = [sys.executable, "-P", "-m", "vhost_user", name, *without_own(rest)]
    return keep(options, command, listening, watched=watched)


def without_own(arguments: Iterable[str]) -> list[str]:
    """The arguments of a command without those that are the keeper's."""
    left: list[str] = []
    given = iter(arguments)
    for word in given:
        if word == "--":
            return [*left, word, *given]
        name, equals, _ = word.partition("=")
        if name not in OWN:
            left.append(word)
        elif OWN[name] and not equals:
            next(given, None)
    return left


def keep(
    options: argparse.Namespace,
    command: Sequence[str],
    listening: Callable[[], None],
    *,
    watched: bool = False,
) -> int:
    """Keeps front-ends for ``command`` until a signal ends it."""
    where = endpoint(options)
    return until_signalled(lambda: _keeper(options, command, watched).run(where, listening))


def _keeper(options: argparse.Namespace, command: Sequence[str], watched: bool) -> "Keeper":
    from .keeper import Keeper, open_relay
    from .sources import Sources

    try:
        relay = open_relay(
            options.socket_path,
            options.fd,
            connect=options.connect,
            mode=options.mode,
            group=options.group,
        )
    except (OSError, ValueError) as error:
        raise Failure(one_line(error)) from error
    limit = GIVE_UP_AFTER if options.give_up_after is None else options.give_up_after
    return Keeper(
        relay,
        command,
        give_up_after=limit,
        once=options.once,
        sources=Sources() if watched else None,
    )
