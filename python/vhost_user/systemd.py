"""What a service manager hands down and wants to hear: sd_listen_fds(3), sd_notify(3)."""

from __future__ import annotations

import os

FIRST_FD = 3
"""Descriptors that are handed down start here."""


STORED = "vhost-user-hold-"
"""How the names of descriptors begin that a keeper has had stored; a number follows."""


def listen_fd() -> int | None:
    """The one socket that was handed down to this process, if one was.

    Raises ``ValueError`` if there are several.
    """
    sockets = [fd for fd, name in _handed_down() if not name.startswith(STORED)]
    if len(sockets) > 1:
        count = len(sockets)
        raise ValueError(f"LISTEN_FDS hands down {count} sockets; a back-end takes one: use fd=")
    return sockets[0] if sockets else None


def stored_fds() -> dict[int, int]:
    """The descriptors that a keeper has had stored, by their numbers. No child inherits them."""
    found = {}
    for fd, name in _handed_down():
        number = name.removeprefix(STORED)
        if number != name and number.isdecimal():
            os.set_inheritable(fd, False)
            found[int(number)] = fd
    return found


def store_address() -> str | None:
    """Where a service manager takes descriptors that it is to keep for the next process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    # Managers that do not say how many they take may take some.
    takes = os.environ.get("FDSTORE", "") != "0"
    return address if address.startswith(("/", "@")) and takes else None


def _handed_down() -> list[tuple[int, str]]:
    """The descriptors that were handed down to this process, with their names."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return [(FIRST_FD + n, names[n] if n < len(names) else "") for n in range(count)]


def notify(state: str) -> None:
    """Tells the service manager, if there is one that wants to know. Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    import socket

    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        pass  # Nobody listens: that is the manager's business.
