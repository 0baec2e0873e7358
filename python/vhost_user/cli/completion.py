"""``vhost-user completion``: a script by which a shell completes the command line.

It is made when it is asked for, from the parsers themselves, by shtab.
"""

import argparse

from .exits import Exit, Failure
from .streams import out

SHELLS = ("bash", "zsh", "fish")


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        import shtab
    except ImportError as error:
        what = "shtab makes the scripts, and is not installed"
        raise Failure(f"{what}: pip install 'vhost-user[completion]'") from error
    from .tree import tree

    if options.shell not in shtab.SUPPORTED_SHELLS:
        known = f"shtab {shtab.__version__} knows {', '.join(shtab.SUPPORTED_SHELLS)}"
        raise Failure(f"{known}, not {options.shell}: pip install --upgrade shtab")
    out(shtab.complete(tree(), options.shell).rstrip("\n"))
    return Exit.OK
