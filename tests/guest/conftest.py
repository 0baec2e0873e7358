"""Fixtures for tests that boot a guest, with an old QEMU and kernel and with new ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import vhost_user as vu
from rig import failure

from .disk import DISK_BYTES, RamDisk
from .rig.machine import Device, Machine
from .rig.packages import NEWEST, OLDEST, Packages, fetch


class Boot(Protocol):
    """Starts a guest with ``devices`` and returns once it answers; ended with the test. What else
    it takes is the machine's.
    """

    def __call__(
        self,
        *devices: Device,
        cpus: int = 1,
        options: Sequence[str] = (),
        kernel_arguments: str = "",
        from_disk: bool = False,
        system: Packages | None = None,
    ) -> Machine: ...


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test with the suites that its module names, or with the oldest and the newest."""
    if "packages" in metafunc.fixturenames:
        suites = _suites(getattr(metafunc.module, "RUN_WITH", (OLDEST, NEWEST)))
        metafunc.parametrize("packages", suites, indirect=True, scope="session")


def _suites(named: Sequence[str]) -> Sequence[str]:
    """``named``, or the one in ``GUEST_SUITE``; none where only the newest has what is needed."""
    only = os.environ.get("GUEST_SUITE")
    if only is None:
        return named
    return [] if named == (NEWEST,) and only != NEWEST else [only]


@pytest.fixture(scope="session")
def packages(request: pytest.FixtureRequest) -> Packages:
    return fetch(request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of zeroes in a file."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    return path


@pytest.fixture
def boot(packages: Packages, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    machines: list[Machine] = []

    def boot(*devices: Device, **settings: Any) -> Machine:
        directory = tmp_path / f"guest-{len(machines)}"
        directory.mkdir()
        machine = Machine(packages, directory, devices, **settings)
        machines.append(machine)
        failure.show(request.node, "guest", machine)
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
