"""Fixtures for tests that boot a guest. ``GUEST_SUITE`` picks another QEMU and kernel."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import vhost_user as vu

from .disk import DISK_BYTES, RamDisk
from .rig.machine import Device, Machine
from .rig.packages import SUITES, Packages, fetch

MACHINES = pytest.StashKey[list[Machine]]()


class Boot(Protocol):
    """Starts a guest with ``devices`` and returns once it answers; ended with the test."""

    def __call__(self, *devices: Device, cpus: int = 1) -> Machine: ...


@pytest.fixture(scope="session")
def packages() -> Packages:
    return fetch(os.environ.get("GUEST_SUITE", SUITES[0]))


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Where a back-end may listen: a path short enough for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="vhost-user-") as directory:
        yield Path(directory) / "backend.sock"


@pytest.fixture
def boot(packages: Packages, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    machines = request.node.stash.setdefault(MACHINES, [])

    def boot(*devices: Device, cpus: int = 1) -> Machine:
        directory = tmp_path / f"guest-{len(machines)}"
        directory.mkdir()
        machine = Machine(packages, directory, devices, cpus=cpus)
        machines.append(machine)
        machine.wait_ready()
        return machine

    yield boot
    for machine in machines:
        machine.close()


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk(DISK_BYTES)


@pytest.fixture
def device(disk: RamDisk, socket_path: Path) -> Iterator[Device]:
    """The disk served in this process, so that a test can look into its memory."""
    with vu.Backend(disk, socket=socket_path):
        yield Device(model="vhost-user-blk-pci", socket=socket_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One guest at a time: each takes all the processors that a small machine has."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("guest"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the console of each guest of a test that failed."""
    report = yield
    if report.when == "call" and report.failed:
        for machine in item.stash.get(MACHINES, []):
            report.sections.append((f"guest of {item.name}", machine.report()))
    return report
