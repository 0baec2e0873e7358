"""``vhost-user run``: serves a device class from a Python file or module."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .captive import serve_beside
from .exits import Exit, Failure
from .held import tell_sources
from .hold import around
from .lines import set_format
from .serve import add_options, endpoint, serve
from .settings import describe, make, read_settings
from .streams import out
from .target import load

if TYPE_CHECKING:
    from vhost_user import Device


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.add_argument(
        "target",
        nargs="?",
        help="FILE.py:Class or package.module:Class; :Class may be left out if there is only one "
        "device class. With --help after it, its own options are shown",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="the options of the class, converted as its constructor is annotated",
    )
    add_options(parser)
    parser.add_argument(
        "--reload",
        action="store_true",
        help="hold the front-end, and take up the device's code anew whenever it has changed",
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, or the class's help")
    parser.set_defaults(show_help=parser.format_help)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    if options.target is None:
        if not options.help:
            raise Failure("a target is needed: FILE.py:Class", status=Exit.USAGE)
        out(options.show_help().rstrip())
        return Exit.OK
    if options.help:
        out(f"usage: vhost-user run {options.target} [key=value ...] --socket-path PATH\n")
        out(describe(load(options.target)))
        out("\nvhost-user run --help tells the options of every device.")
        return Exit.OK
    set_format(options.log_format)

    def serve_it(listening: Callable[[], None]) -> int:
        endpoint(options)
        if options.hold or options.reload:
            return around(options, listening, watched=options.reload)
        return serve(make_device(options.target, options.settings), options, listening)

    return serve_beside(options, serve_it)


def make_device(text: str, settings: Sequence[str]) -> "Device":
    """The device that ``text`` names, made with ``key=value`` words."""
    from vhost_user import Device

    try:
        target = load(text)
    finally:
        tell_sources()
    made = make(target, read_settings(target, settings))
    if not isinstance(made, Device):
        what = "None" if made is None else f"an object of type {type(made).__name__}"
        raise Failure(f"{text} gave {what}, not a vhost_user.Device")
    return made
