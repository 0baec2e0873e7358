"""Fixtures for tests that boot a guest. ``GUEST_SUITE`` picks another QEMU and kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import vhost_user as vu
from rig import failure

from .disk import DISK_BYTES, RamDisk
from .rig.machine import Device, Machine
from .rig.packages import SUITES, Packages, fetch


class Boot(Protocol):
    """Starts a guest with ``devices`` and returns once it answers; ended with the test."""

    def __call__(self, *devices: Device, cpus: int = 1) -> Machine: ...


@pytest.fixture(scope="session")
def packages() -> Packages:
    return fetch(os.environ.get("GUEST_SUITE", SUITES[0]))


@pytest.fixture
def boot(packages: Packages, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    machines: list[Machine] = []

    def boot(*devices: Device, cpus: int = 1) -> Machine:
        directory = tmp_path / f"guest-{len(machines)}"
        directory.mkdir()
        machine = Machine(packages, directory, devices, cpus=cpus)
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
