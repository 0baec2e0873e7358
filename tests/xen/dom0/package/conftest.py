"""A back-end for each module, and front-ends for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest
from peer import wire

from ..backend import BackendProcess
from ..design import Design
from ..front_end import XenFrontEnd
from ..guest import Guest
from ..layout import Layout
from ..memory import DomainMemory


class Connect(Protocol):
    """A connected front-end whose guest has granted what its layout wants in advance.

    At the end it hangs up, and takes the grants back once the back-end has let go.
    """

    def __call__(
        self, layout: Layout, design: Design = Design.MERGED, socket: str = "file"
    ) -> AbstractContextManager[XenFrontEnd]: ...


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackendProcess]:
    with BackendProcess(tmp_path_factory.mktemp("backend")) as process:
        yield process


@pytest.fixture
def connect(guest: Guest, backend: BackendProcess) -> Iterator[Connect]:
    yield connector(guest, backend)
    print(backend.log())  # shown if the test fails


def connector(guest: Guest, backend: BackendProcess) -> Connect:
    """How to connect to ``backend`` for ``guest``."""

    @contextmanager
    def connected(
        layout: Layout, design: Design = Design.MERGED, socket: str = "file"
    ) -> Iterator[XenFrontEnd]:
        memory = DomainMemory(guest, by_grant=layout.by_grant)
        channel = wire.Channel.connect(backend.socket(socket))
        if layout.by_grant and not layout.on_demand:
            memory.grant(memory.start, memory.end - memory.start)
        try:
            with XenFrontEnd(channel, memory, design, layout) as front:
                yield front
        finally:
            guest.grants.revoke_all()

    return connected
