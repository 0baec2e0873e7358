"""What a service manager hands down and wants to hear: sd_listen_fds(3), sd_notify(3)."""

from __future__ import annotations

import os

FIRST_FD = 3
"""Descriptors that are handed down start here."""


def listen_fd() -> int | None:
    """The one socket that was handed down to this process, if one was.

    Raises ``ValueError`` if there are several.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    if count > 1:
        raise ValueError(f"LISTEN_FDS hands down {count} sockets; a back-end takes one: use fd=")
    return FIRST_FD if count == 1 else None


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
