"""``vhost-user man``: the manual page, for man(1).

It is made when it is asked for, from the parsers themselves, by argparse-manpage.
"""

import argparse

from .exits import Exit, Failure
from .streams import out


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.epilog = "Read it with: vhost-user man | man --local-file -"


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]
    except ImportError as error:
        what = "argparse-manpage makes the page, and is not installed"
        raise Failure(f"{what}: pip install 'vhost-user[man]'") from error
    from vhost_user import __version__

    from .tree import tree

    page = Manpage(
        tree(),
        {
            "project_name": "vhost-user",
            "version": __version__,
            "manual_title": "User Commands",
            "manual_section": 1,
            "description": "virtio devices as vhost-user back-ends",
        },
    )
    out(str(page).rstrip("\n"))
    return Exit.OK
