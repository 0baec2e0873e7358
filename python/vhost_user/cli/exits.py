"""How the command ends."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit statuses of every command."""

    OK = 0
    """A clean end, also one that a signal asked a server for."""
    FAILED = 1
    """Could not start, or the device failed."""
    USAGE = 2
    """The command line is wrong."""
    PROTOCOL = 3
    """A client command's peer broke the protocol."""
    UNREACHABLE = 5
    """A client command could not connect."""
    INTERRUPTED = 130
    """A client command was interrupted."""


class Failure(Exception):
    """The end of the command with one line for the user.

    Whatever is its ``__cause__`` is shown in full with ``--debug``.
    """

    def __init__(self, message: str, *, status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.status = status


class Unread(Exception):
    """Whoever read the output has left: there is nobody to tell."""


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; its class where it says nothing."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
