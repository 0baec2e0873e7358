"""A guest for each module, and proof at its end that nothing of it is left mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from peer.process import eventually

from .guest import Guest
from .ioctl import device

ONCE = "once: what differs in no kind of dom0, and runs in one"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", ONCE)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made
    assert eventually(made.is_gone), "pages of the guest stay mapped"


@pytest.fixture(autouse=True)
def nothing_stays_mapped(guest: Guest) -> Iterator[None]:
    yield
    assert guest.grants.in_use() == []


@pytest.fixture
def gntdev() -> Iterator[int]:
    fd = device("gntdev")
    yield fd
    os.close(fd)


@pytest.fixture
def privcmd() -> Iterator[int]:
    fd = device("privcmd")
    yield fd
    os.close(fd)
