"""The socket at which a running back-end takes orders.

Each line that comes is a JSON object, ``{"do": "resize", "size": 1048576}``; the answer is a line
too: ``{"ok": {...}}`` or ``{"error": "why not"}``. Orders are carried out at once or begun, so that
one thread serves all who are connected. Whoever may connect may end the back-end: the socket is its
owner's alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import selectors
import socket
import stat
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .orders import Orders

if TYPE_CHECKING:
    from .server import Backend

MAX_PATH = 98
"""Bytes of the path: a Unix socket's has 107, and it is made under a longer name."""

MAX_LINE = 65536
"""Bytes of an order."""

MAX_CLIENTS = 8
"""Connections at a time; where another one comes, the oldest goes."""

BACKLOG = 128
"""Connections that wait to be taken. Where more come the kernel refuses them at once."""

IDLE = 60.0
"""Seconds after which a connection that says nothing is closed."""

SLOW = 1.0
"""Seconds that a client has to take an answer which the kernel does not take at once. All others
wait meanwhile."""

PAUSE = 0.05
"""Seconds before the next try where a connection cannot be taken, as for want of descriptors."""

TRY_EVERY = 0.1
"""Seconds between two looks whether another back-end has ended."""

JOIN_LIMIT = 5.0
"""Seconds for the thread to end. Orders are short, but a device's ``resize`` may be anything."""


class Control:
    """The socket at ``path`` and the thread that serves it, until ``close``."""

    def __init__(self, path: str, backend: Backend, *, patient: bool) -> None:
        """``patient``: a back-end that takes orders there makes way for this one when it ends.

        Raises ``OSError`` if the socket cannot be made.
        """
        self._path = path
        self._orders = Orders(backend)
        self._process = os.getpid()
        self._listener = _first_listener(path, patient=patient)
        self._clients: list[_Client] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="vhost-user-control", daemon=True)
        _open.add(self)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, which removes the socket."""
        if os.getpid() != self._process:
            return
        self._wake.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_LIMIT)

    def let_go(self) -> None:
        """In a fork: closes what is its parent's, so that nobody waits for the fork's end."""
        for one in [self._wake, self._woken, *(client.socket for client in self._clients)]:
            one.close()
        if self._listener is not None:
            self._listener.socket.close()

    def _serve(self) -> None:
        while self._listener is None:
            if select.select([self._woken], [], [], TRY_EVERY)[0]:
                return
            with contextlib.suppress(OSError):
                self._listener = _Listener(self._path)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener.socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while self._turn(selector):
                now = time.monotonic()
                for client in [client for client in self._clients if client.until <= now]:
                    self._end(selector, client)
        for client in self._clients:
            client.socket.close()
        self._listener.close()
        self._woken.close()

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Waits for something and does what there is to do. False: that is to end."""
        for key, _ in selector.select(IDLE if self._clients else None):
            if key.fileobj is self._woken:
                return False
            if isinstance(key.data, _Client):
                if key.data in self._clients and not key.data.go_on(self._orders):
                    self._end(selector, key.data)
            else:
                self._accept(selector, key.fileobj)
        return True

    def _accept(self, selector: selectors.BaseSelector, listener: Any) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            time.sleep(PAUSE)
            return
        if len(self._clients) >= MAX_CLIENTS:
            self._end(selector, self._clients[0])
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.append(client)
        selector.register(connection, selectors.EVENT_READ, client)

    def _end(self, selector: selectors.BaseSelector, client: _Client) -> None:
        selector.unregister(client.socket)
        client.socket.close()
        self._clients.remove(client)


def _first_listener(path: str, *, patient: bool) -> _Listener | None:
    """None: another back-end has the path, and is waited for."""
    try:
        return _Listener(path)
    except OSError as error:
        if patient and error.errno == errno.EADDRINUSE:
            return None
        raise


_open: weakref.WeakSet[Control] = weakref.WeakSet()


def _let_go_all() -> None:
    for control in list(_open):
        control.let_go()


os.register_at_fork(after_in_child=_let_go_all)


class _Client:
    """One who gives orders."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.until = time.monotonic() + IDLE
        self._said = b""

    def go_on(self, orders: Orders) -> bool:
        """Answers all whole lines that have come; false: the connection is over."""
        try:
            piece = self.socket.recv(MAX_LINE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not piece:
            return False
        self.until = time.monotonic() + IDLE
        *lines, self._said = (self._said + piece).split(b"\n")
        if len(self._said) > MAX_LINE:
            self._answer({"error": f"an order has at most {MAX_LINE} bytes"})
            return False
        return all(self._answer(orders.answer(line)) for line in lines)

    def _answer(self, answer: dict[str, Any]) -> bool:
        """Sends an answer; false: nobody takes it."""
        try:
            self.socket.settimeout(SLOW)
            self.socket.sendall(json.dumps(answer).encode() + b"\n")
            self.socket.setblocking(False)
        except OSError:
            return False
        return True


class _Listener:
    """A listening socket that its owner alone may use, in place of a stale one."""

    def __init__(self, path: str) -> None:
        """Raises ``OSError`` if it cannot be made."""
        if len(os.fsencode(path)) > MAX_PATH:
            what = f"the path of a control socket has over {MAX_PATH} bytes"
            raise OSError(errno.ENAMETOOLONG, what, path)
        _check_free(path)
        # The program may change its directory.
        self._path = os.path.abspath(path)
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self._inode = self._bind(path)
        except OSError as error:
            self.socket.close()
            what = f"cannot make the control socket: {error.strerror}"
            raise OSError(error.errno, what, path) from None

    def _bind(self, path: str) -> int:
        beside = f"{path}.{os.getpid() % 10**8}"
        # The file gets no more than its socket has: it is never open to others, not for a moment.
        os.fchmod(self.socket.fileno(), 0o600)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        self.socket.bind(beside)
        os.chmod(beside, 0o600)
        self.socket.listen(BACKLOG)
        self.socket.setblocking(False)
        inode = os.lstat(beside).st_ino
        os.rename(beside, path)
        return inode

    def close(self) -> None:
        """Ends it, and removes its file, unless another one is there by now."""
        with contextlib.suppress(OSError):
            # No other file has this number as long as the socket is open.
            if os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self.socket.close()


def _check_free(path: str) -> None:
    """Raises ``OSError`` where something is that is not to be replaced."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "this is no socket, and is left alone", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(SLOW)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # Too many wait there, say.
    raise OSError(errno.EADDRINUSE, "another back-end takes orders there", path)
