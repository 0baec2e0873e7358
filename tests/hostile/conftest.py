"""Fixtures of the hostile suite: the process under attack, and the two ways to be refused."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peer.front_end import FrontEnd

from .fuse import SlowFiles
from .server import Server

SOAK = os.environ.get("VHOST_USER_SOAK") == "1"

RING_SIZE = 256

Refused = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "victim(kind, **options): the device under attack: 'ram', 'holding' or 'file'"
    )


class Servers:
    """Processes by what they serve: each is used again until a test leaves it unclean."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._running: dict[str, Server] = {}

    def get(self, victim: dict[str, Any]) -> Server:
        """The process that serves such a victim."""
        key = repr(sorted(victim.items()))
        if key in self._running and self._running[key].has_said_much():
            self.discard(self._running[key])
        if key not in self._running:
            self._running[key] = Server(self._factory.mktemp("vu"), dict(victim))
        return self._running[key]

    def discard(self, server: Server) -> None:
        """Ends one process; the next test gets a new one."""
        self._running = {k: v for k, v in self._running.items() if v is not server}
        server.process.kill()
        server.close()

    def close(self) -> None:
        """Ends all processes."""
        for server in self._running.values():
            server.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    running = Servers(tmp_path_factory)
    yield running
    running.close()


@pytest.fixture
def server(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A process that serves the victim of the test's mark: by default a RAM disk, two queues."""
    mark = request.node.get_closest_marker("victim")
    victim = {"num_queues": 2, **mark.kwargs} if mark else {"num_queues": 2}
    victim["kind"] = mark.args[0] if mark and mark.args else "ram"
    served = servers.get(victim)
    clean = False
    try:
        served.begin()
        yield served
        served.end()
        clean = True
    finally:
        if not clean:
            print(served.log())
            servers.discard(served)


@pytest.fixture
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`fresh_server(kind, ...)` is a process for one test, for victims that do not recover."""
    started: list[Server] = []

    def start(kind: str, **options: Any) -> Server:
        started.append(Server(tmp_path_factory.mktemp("vu"), {"kind": kind, **options}))
        started[-1].begin()
        return started[-1]

    yield start
    for served in started:
        try:
            served.end()
        finally:
            status = served.close()
        assert status == 0


@pytest.fixture
def slow_files(tmp_path: Path) -> Iterator[SlowFiles]:
    """A file of 1 MiB on a file system that answers when it is told to."""
    files = SlowFiles(tmp_path, 1 << 20)
    yield files
    files.close()


@pytest.fixture
def front(server: Server) -> FrontEnd:
    """Two running queues, the victim's ring of 256 entries."""
    front = server.connect().negotiate().share_memory()
    front.start_ring(0, RING_SIZE)
    front.start_ring(1)
    return front


@pytest.fixture(params=["acknowledged", "closed"])
def refused(request: pytest.FixtureRequest) -> Refused:
    """Sends a message and insists that it is refused: with an acknowledgement, and without."""

    def acknowledged(
        front: FrontEnd, message: int, payload: bytes = b"", fds: Iterable[int] | None = None
    ) -> None:
        assert front.is_refused(message, payload, fds)
        assert front.lives()

    def closed(
        front: FrontEnd, message: int, payload: bytes = b"", fds: Iterable[int] | None = None
    ) -> None:
        assert front.is_dropped(message, payload, fds)

    return acknowledged if request.param == "acknowledged" else closed


@pytest.fixture
def turns() -> Callable[[int, int], int]:
    """How many turns a long loop takes: `turns(short, full)`."""

    def choose(short: int, full: int) -> int:
        return full if SOAK else short

    return choose
