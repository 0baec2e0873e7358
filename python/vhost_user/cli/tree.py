"""The parsers of all commands, as one tree: what completions and the manual page are made from."""

import argparse
from typing import Any

from . import COMMANDS, configured

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "fish": "__fish_complete_path"}
"""How the scripts complete names of files."""

NAMES_OF_FILES = ("IMAGE", "PATH", "SOCKET", "TARGET", "PROGRAM")
"""What stands for a file where arguments are described."""


def tree() -> argparse.ArgumentParser:
    """A parser that has a command as its first argument."""
    root = argparse.ArgumentParser(
        "vhost-user", description="Virtio devices as vhost-user back-ends.", allow_abbrev=False
    )
    root.add_argument("--version", action="store_true", help="print the version")
    root.add_argument(
        "--print-capabilities",
        action="store_true",
        help="print as JSON what the command can do, for management tools",
    )
    child: Any = _child
    commands = root.add_subparsers(metavar="COMMAND", parser_class=child)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, command=name)
    return root


def _child(*, command: str, **_: Any) -> argparse.ArgumentParser:
    parser = configured(command)[1]
    for action in parser.arguments:
        if action.metavar in NAMES_OF_FILES or action.dest in ("target", "socket"):
            action.complete = FILES  # type: ignore[attr-defined]
    return parser
