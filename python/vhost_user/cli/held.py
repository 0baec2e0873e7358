"""What a back-end that ``hold`` has started knows of it, and tells it."""

import os
import sys

from vhost_user.systemd import FIRST_FD

HELD = "VHOST_USER_HELD"
"""The variable that tells a child of its keeper."""

FIRST, FOLLOWS = "first", "follows"
"""Its values: whether another process has the device until this one takes over."""

SOURCES_FD = FIRST_FD + 1
"""Where the child writes the names of the files that its code came from, if it is asked to."""

SOURCES = "VHOST_USER_SOURCES_FD"
"""The variable that asks it, with that number."""


def follows() -> bool:
    """In a child: whether another process has the device until this one takes over."""
    return os.environ.get(HELD) == FOLLOWS


def is_held() -> bool:
    """In a child: whether it is one, so that its keeper tells where front-ends find it."""
    return HELD in os.environ


def tell_sources() -> None:
    """In a child that was asked to: tells the files of the code that is loaded, once."""
    number = os.environ.pop(SOURCES, None)
    if number is None or not number.isdecimal():
        return
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    apart = tuple({sys.prefix, sys.base_prefix, own, os.path.dirname(os.__file__)})
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    names = {os.path.abspath(name) for name in files if name}
    told = b"".join(os.fsencode(name) + b"\0" for name in names if not name.startswith(apart))
    try:
        os.write(int(number), told)
        os.close(int(number))
    except OSError:
        pass  # Whoever asked has left.
