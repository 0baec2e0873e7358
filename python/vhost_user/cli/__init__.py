"""The command ``vhost-user``.

Each command is a module here with ``configure(parser)`` and ``run(options)``; only the one that
is asked for is imported.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from .exits import Exit, Failure, Unread
from .streams import (
    flush_out,
    forget_unread_notes,
    keep_standard_descriptors,
    note,
    out,
    show_any_name,
)

if TYPE_CHECKING:
    from .parser import Parser

COMMANDS = {
    "blk": "serve an image file as a block device",
    "run": "serve a device class from a Python file or module",
    "hold": "keep front-ends connected while their back-end dies or is upgraded",
    "info": "tell what the back-end at a socket offers",
    "snippet": "tell what QEMU, libvirt and others need to have a device",
    "doctor": "tell what is missing on this host, and what to do",
    "ctl": "give orders to a running server",
    "top": "watch a running server, queue by queue",
    "new": "make a package for a device, with a test that passes",
    "bench": "measure the block device at a socket",
    "demo": "serve three disks, drive them and check every byte",
    "completion": "print what lets a shell complete the command line",
    "man": "print the manual page",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    status = _status(arguments)
    if not forget_unread_notes():
        os._exit(status)
    return status


def _status(arguments: Sequence[str] | None) -> int:
    keep_standard_descriptors()
    show_any_name()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(given)
        flush_out()
        return status
    except Failure as failure:
        if "--debug" in given:
            _show_trace(failure)
        note(f"vhost-user: {failure}", level="error")
        return failure.status
    except Unread:
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if "--print-capabilities" in arguments:
        from .capabilities import show

        return show(arguments)
    if command in ("-h", "--help", "help"):
        out(_help())
        return Exit.OK
    if command == "--version":
        out(f"vhost-user {_version()}")
        return Exit.OK
    if command not in COMMANDS:
        raise Failure(_unknown(command, arguments[1:]), status=Exit.USAGE)
    return _run(command, arguments[1:])


def configured(command: str) -> tuple[ModuleType, "Parser"]:
    """The module of a command, and the parser of its arguments."""
    from .parser import Parser

    module = importlib.import_module(f".{command}", __name__)
    # A target of `run` has a help of its own, which `run` shows.
    summary = COMMANDS[command]
    parser = Parser(command, f"{summary[0].upper()}{summary[1:]}.", add_help=command != "run")
    module.configure(parser)
    parser.add_argument("--debug", action="store_true", help="show errors with their traceback")
    return module, parser


def _run(command: str, arguments: list[str]) -> int:
    module, parser = configured(command)
    own, behind = _own_and_behind(command, arguments)
    try:
        options = parser.parse(own)
    except SystemExit:  # argparse has shown the help.
        return Exit.OK
    options.given, options.command = [command, *arguments], behind
    status: int = module.run(options)
    return status


def _own_and_behind(command: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of `hold`, and the command behind ``--``. Other commands have all for them."""
    if command != "hold" or "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vhost-user COMMAND [options]",
            "",
            "Virtio devices as vhost-user back-ends.",
            "",
            *lines,
            "",
            "vhost-user COMMAND --help         a command's options",
            "vhost-user --version              the version",
            "vhost-user --print-capabilities   what the command can do, for management tools",
        ]
    )


def _unknown(command: str, others: Sequence[str]) -> str:
    if not command:
        return f"a command is needed: {', '.join(COMMANDS)} (see vhost-user --help)"
    from .parser import did_you_mean

    kind = "option" if command.startswith("-") else "command"
    first = next((word for word in others if word in COMMANDS), None)
    if kind == "option" and first is not None:
        return f"{command}: options come behind the command: vhost-user {first} {command} ..."
    if kind == "command" and os.path.isfile(command.partition(":")[0]):
        right = "run" if ".py" in command else "blk"
        return f"a command is needed before {command}: vhost-user {right} {command}"
    hint = did_you_mean(command, [*COMMANDS, "--help", "--version", "--print-capabilities"])
    return f"unknown {kind} {command}{hint or ' (see vhost-user --help)'}"


def _version() -> str:
    from vhost_user import __version__

    return __version__


def _show_trace(failure: Failure) -> None:
    import traceback

    if failure.__cause__ is not None:
        trace = "".join(traceback.format_exception(failure.__cause__))
        note(trace.rstrip(), level="error")
