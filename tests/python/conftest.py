"""Fixtures of several files here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .programs import Programs


@pytest.fixture
def programs(vhost_socket: Path) -> Iterator[Programs]:
    with Programs(vhost_socket) as programs:
        yield programs
