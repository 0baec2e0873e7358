"""QEMU carries the state of a file system's device, in a file, from one back-end to another."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import vhost_user as vu
from peer.process import eventually

from . import migration
from .rig.machine import Device, Machine
from .rig.packages import NEWEST, Packages

RUN_WITH = (NEWEST,)

MODEL = "vhost-user-fs-pci,tag=test,queue-size=128"

FILE_SYSTEM = 26
"""VIRTIO 1.3, "Device Types"."""

HANDLES = bytes(range(256)) * 16384
"""4 MiB: more than any pipe holds."""


class FileSystem(vu.Device):
    """Serves nothing: what is in question is what it keeps of its driver."""

    device_id = FILE_SYSTEM

    def __init__(self, handles: bytes = b"") -> None:
        super().__init__(num_queues=2)
        self.handles = handles

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            request.complete(0)

    def save(self, out: BinaryIO, /) -> None:
        out.write(self.handles)

    def load(self, source: vu.StateReader, /) -> None:
        self.handles = source.read()


class Broken(FileSystem):
    """Does not say what it keeps."""

    state_name = "FileSystem"

    def save(self, out: BinaryIO, /) -> None:
        raise OSError("the handles cannot be saved")


def machine(packages: Packages, directory: Path, socket: Path, *, incoming: bool) -> Machine:
    """A machine with no guest but the firmware."""
    directory.mkdir()
    device = Device(model=MODEL, socket=socket)
    return Machine(packages, directory, [device], from_disk=True, incoming=incoming)


def test_the_state_of_a_device_goes_with_its_machine(
    packages: Packages, tmp_path: Path, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = {"uri": f"file:{tmp_path / 'saved'}"}
    with (
        vu.Backend(Broken(), socket=socket_path),
        machine(packages, tmp_path / "broken", socket_path, incoming=False) as source,
    ):
        source.qmp.command("migrate", saved)
        assert migration.wait_end(source).status == "failed"
        assert eventually(lambda: "the handles cannot be saved" in caplog.text)
        migration.wait_running(source)
    with (
        vu.Backend(FileSystem(HANDLES), socket=socket_path),
        machine(packages, tmp_path / "source", socket_path, incoming=False) as source,
    ):
        source.qmp.command("migrate", saved)
        assert migration.wait_end(source).status == "completed"
    arrived = FileSystem()
    with (
        vu.Backend(arrived, socket=socket_path),
        machine(packages, tmp_path / "destination", socket_path, incoming=True) as destination,
    ):
        destination.qmp.command("migrate-incoming", saved)
        migration.wait_running(destination)
    assert arrived.handles == HANDLES
