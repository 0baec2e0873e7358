"""A back-end for each module, and front-ends for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import pytest
from peer import wire
from peer.process import eventually

from ..backend import BackendProcess, Process
from ..design import Design
from ..front_end import XenFrontEnd
from ..guest import FRAMES, Guest
from ..layout import Layout
from ..memory import PAGES, DomainMemory


class Connect(Protocol):
    """A connected front-end whose guest has granted what its layout wants in advance.

    At the end it hangs up, and takes the grants back once the back-end has let go.
    """

    def __call__(
        self,
        layout: Layout,
        design: Design = Design.MERGED,
        socket: str = "file",
        frames: Sequence[int] = FRAMES[:PAGES],
    ) -> AbstractContextManager[XenFrontEnd]: ...


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackendProcess]:
    with BackendProcess(tmp_path_factory.mktemp("backend")) as process:
        yield process


@pytest.fixture
def mortal() -> Iterator[Guest]:
    """A guest that a test may destroy; in the end nothing keeps it from going away."""
    with Guest() as made:
        yield made
    assert eventually(made.is_gone), "pages of the guest stay mapped"


@pytest.fixture
def connect(guest: Guest, backend: BackendProcess) -> Iterator[Connect]:
    yield connector(guest, backend)
    print(backend.log())  # shown if the test fails


def once(*values: object) -> Any:
    """Values of a parameter that show nothing new in another kind of dom0."""
    return pytest.param(*values, marks=pytest.mark.once)


@contextmanager
def told(backend: Process, *words: str) -> Iterator[None]:
    """Insists that what happens meanwhile has the back-end say all of ``words``, in one line."""
    before = len(backend.log())

    def lines() -> list[str]:
        return backend.log()[before:].splitlines()

    yield
    said = eventually(lambda: any(all(word in line for word in words) for line in lines()))
    assert said, (words, lines())


def connector(guest: Guest, backend: Process) -> Connect:
    """How to connect to ``backend`` for ``guest``."""

    @contextmanager
    def connected(
        layout: Layout,
        design: Design = Design.MERGED,
        socket: str = "file",
        frames: Sequence[int] = FRAMES[:PAGES],
    ) -> Iterator[XenFrontEnd]:
        memory = DomainMemory(guest, by_grant=layout.by_grant, frames=frames)
        channel = wire.Channel.connect(backend.socket(socket))
        if layout.by_grant and not layout.on_demand:
            memory.grant(memory.start, memory.end - memory.start)
        try:
            with XenFrontEnd(channel, memory, design, layout) as front:
                yield front
        finally:
            guest.grants.revoke_all()

    return connected
