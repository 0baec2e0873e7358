"""A back-end as a child process, which finds its socket as a service manager hands one down."""

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from vhost_user import _core
from vhost_user.systemd import FIRST_FD

from .exits import Failure, one_line
from .held import FIRST, FOLLOWS, HELD, SOURCES, SOURCES_FD

NOT_FOR_CHILDREN = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_FDNAMES", "LISTEN_PIDFDID", "FDSTORE"),
    HELD,
)
"""What a service manager has told this process alone."""


class Child:
    """A running command, and a listening socket that only it has.

    The socket has no name, so nobody else can connect to it: its file is gone before the command
    starts, and is reached through a descriptor of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        limits: tuple[int, int],
        *,
        sources: bool = False,
        follows: bool = False,
    ) -> None:
        """Starts it. ``limits``: how many descriptors it may have (``RLIMIT_NOFILE``). ``sources``:
        it is to tell the files of its code. ``follows``: another process may have its device until
        it takes over.

        Raises :class:`Failure` if there is no such command, or no other process can be had now.
        """
        self.status: int | None = None
        told = {HELD: FOLLOWS if follows else FIRST}
        try:
            error = self._fork(command, limits, sources, told)
        except OSError as failure:
            raise Failure(f"cannot start {command[0]}: {one_line(failure)}") from failure
        if error:
            self.ended(None)
            self.close()
            raise Failure(f"cannot run {command[0]}: {os.strerror(int(error))}")

    def _fork(
        self, command: Sequence[str], limits: tuple[int, int], watched: bool, told: dict[str, str]
    ) -> bytes:
        """Starts the process. Gives the number of the error why it is not the command, if so."""
        with ExitStack() as kept, ExitStack() as given:
            listener, self._address = _nameless_listener()
            given.enter_context(listener)
            kept.callback(os.close, self._address)
            self._sources, sources = _pipe(kept, given, os.O_NONBLOCK)
            ready, answer = _pipe(kept, given)
            parent = os.getpid()
            self.pid = os.fork()
            if self.pid == 0:
                shown = sources if watched else None
                _execute(command, listener.fileno(), shown, limits, answer, told, parent)
            self.pidfd = self._find()
            given.close()
            kept.pop_all()
        with open(ready, "rb") as pipe:
            return pipe.read()

    def _find(self) -> int:
        """A descriptor of the process, which does not live on without one."""
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise

    def connect(self) -> socket.socket:
        """Another connection to it. ``OSError`` if it is no more."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{self._address}")
        except OSError:
            sock.close()
            raise
        return sock

    def ended(self, timeout: float | None) -> bool:
        """Waits until no thread of it is left; false if that takes longer than so many seconds."""
        if self.status is None:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                return False
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return True

    def end(self, grace: float) -> None:
        """Ends it with SIGTERM, and with SIGKILL if it is there so many seconds later."""
        self.signal(signal.SIGTERM)
        try:
            if self.ended(grace):
                return
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends it at once, and waits until it is dead."""
        self.signal(signal.SIGKILL)
        self.ended(None)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it is still there."""
        if self.status is None:
            signal.pidfd_send_signal(self.pidfd, number)

    def end_in_words(self) -> str:
        """How it ended."""
        if self.status is None:
            return "has not ended"
        if self.status < 0:
            try:
                return f"was ended by {signal.Signals(-self.status).name}"
            except ValueError:
                return f"was ended by signal {-self.status}"
        return f"has ended with status {self.status}"

    def sources(self) -> list[Path]:
        """The files of its code, as far as it has told them by now."""
        told = b""
        try:
            while part := os.read(self._sources, 1 << 16):
                told += part
        except BlockingIOError:
            pass
        return [Path(os.fsdecode(name)) for name in told.split(b"\0") if name]

    def close(self) -> None:
        """Closes what is kept of it once it has ended."""
        for fd in (self.pidfd, self._address, self._sources):
            os.close(fd)


def _nameless_listener() -> tuple[socket.socket, int]:
    """A listening socket, and a descriptor of the file that it had."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with tempfile.TemporaryDirectory(prefix="vhost-user-") as folder:
        # The way by a descriptor is short enough for an address wherever the folder is.
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{place}/socket"
            listener.bind(path)
            listener.listen(4)
            address = os.open(path, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(place)
    return listener, address


def _pipe(kept: ExitStack, given: ExitStack, flags: int = 0) -> tuple[int, int]:
    """A pipe whose reading end is kept, and whose writing end is the child's."""
    reader, writer = os.pipe2(os.O_CLOEXEC | flags)
    kept.callback(os.close, reader)
    given.callback(os.close, writer)
    return reader, writer


def _execute(
    command: Sequence[str],
    listener: int,
    sources: int | None,
    limits: tuple[int, int],
    answer: int,
    told: dict[str, str],
    parent: int,
) -> NoReturn:
    """What the forked process does: it becomes the command, or tells why not."""
    error = 0
    try:
        # The number that is kept must not be one of those that are given away.
        answer = _above(answer, SOURCES_FD)
        sources = None if sources is None else _above(sources, SOURCES_FD)
        _give(listener, FIRST_FD)
        environment = {k: v for k, v in os.environ.items() if k not in NOT_FOR_CHILDREN}
        environment |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"} | told
        if sources is not None:
            _give(sources, SOURCES_FD)
            environment[SOURCES] = str(SOURCES_FD)
            # Compiled code is told from a changed file's by seconds and size alone.
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        _alone(limits, parent)
        os.execvpe(command[0], list(command), environment)
    except OSError as failure:
        error = failure.errno or 0
    finally:
        os.write(answer, str(error).encode())
        os._exit(127)


def _above(fd: int, least: int) -> int:
    """The same file at a number above ``least``, closed at exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least + 1)


def _give(fd: int, number: int) -> None:
    if fd == number:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, number)


def _alone(limits: tuple[int, int], parent: int) -> None:
    """Signals, limits and the terminal's signals as a command expects them; an end that is no later
    than the parent's.
    """
    _core.end_with_parent()
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "it has ended before")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    # Ctrl-C is for the keeper, which ends its children in order.
    os.setpgid(0, 0)


def descriptor_limits() -> tuple[int, int]:
    """How many descriptors a process may have; lets this one have all that it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def since(start: float) -> str:
    """The time since ``start``, in words."""
    return f"{(time.monotonic() - start) * 1000:.0f} ms"
