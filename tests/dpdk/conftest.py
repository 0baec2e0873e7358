"""Fixtures for tests that put DPDK's driver on a network device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
from rig import failure

from .rig.packages import Packages, fetch
from .rig.testpmd import Driver


class Drive(Protocol):
    """Starts the driver on the device at ``socket_path``, with ``packets`` to send on each pair of
    queues and with properties of the device; ended with the test.
    """

    def __call__(self, packets: Sequence[Sequence[bytes]], *options: str) -> Driver: ...


@pytest.fixture(scope="session")
def packages() -> Packages:
    return fetch()


@pytest.fixture
def drive(
    packages: Packages, socket_path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Drive]:
    runs: list[Driver] = []

    def drive(packets: Sequence[Sequence[bytes]], *options: str) -> Driver:
        directory = tmp_path / f"run-{len(runs)}"
        directory.mkdir()
        run = Driver(packages, directory, socket_path, packets, *options)
        runs.append(run)
        failure.show(request.node, "driver", run)
        run.wait_ready()
        return run

    yield drive
    for run in runs:
        run.close()
