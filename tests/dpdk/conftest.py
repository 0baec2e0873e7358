"""Fixtures for tests that put DPDK's driver on a network device."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from .rig.packages import Packages, fetch
from .rig.testpmd import Driver

RUNS = pytest.StashKey[list[Driver]]()


class Drive(Protocol):
    """Starts the driver on the device at ``socket_path``, with ``packets`` to send on each pair of
    queues and with properties of the device; ended with the test.
    """

    def __call__(self, packets: Sequence[Sequence[bytes]], *options: str) -> Driver: ...


@pytest.fixture(scope="session")
def packages() -> Packages:
    return fetch()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Where a back-end may listen: a path short enough for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="vhost-user-") as directory:
        yield Path(directory) / "net.sock"


@pytest.fixture
def drive(
    packages: Packages, socket_path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Drive]:
    runs = request.node.stash.setdefault(RUNS, [])

    def drive(packets: Sequence[Sequence[bytes]], *options: str) -> Driver:
        directory = tmp_path / f"run-{len(runs)}"
        directory.mkdir()
        run = Driver(packages, directory, socket_path, packets, *options)
        runs.append(run)
        run.wait_ready()
        return run

    yield drive
    for run in runs:
        run.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One driver at a time: each of its threads looks at its queue all the time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("dpdk"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what each driver of a test that failed has printed."""
    report = yield
    if report.when == "call" and report.failed:
        for run in item.stash.get(RUNS, []):
            report.sections.append((f"driver of {item.name}", run.report()))
    return report
