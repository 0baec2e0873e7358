"""A guest that reads and writes all the time goes to another QEMU before its memory is there.

Its disk is one in Python, which carries requests out by system calls, late and in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peer.process import eventually

from . import migration
from .fleet import Fleet
from .rig.machine import Machine
from .rig.packages import NEWEST
from .test_iommu import BEHIND, IOMMU, STRICT
from .verifier import Verifier

RUN_WITH = (NEWEST,)

BETWEEN = 50
"""Requests of the guest between two events."""

SLOWLY = 1 << 20
"""Bytes a second of memory that nobody asks for."""

ANY_SPEED = 0

DISKS: dict[str, dict[str, Any]] = {
    "split": {},
    # Its descriptors have four pages, which may lie anywhere.
    "packed-behind-an-iommu": {
        "properties": f",packed=on,in_order=on,{BEHIND}",
        "options": IOMMU,
        "kernel_arguments": STRICT,
    },
}
"""What the two machines are told of the disk."""


@pytest.fixture
def fleet(tmp_path: Path, socket_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, socket_path, request.node)
    yield fleet
    fleet.close()


def status(machine: Machine) -> str:
    return str(migration.state(machine).get("status"))


@pytest.mark.parametrize("kind", DISKS)
def test_a_guest_uses_its_disk_while_its_memory_is_on_its_way(fleet: Fleet, kind: str) -> None:
    disk = DISKS[kind]
    guest = fleet.machine(fleet.slow(), **disk)
    verifier = Verifier(guest)
    bits = guest.sh("cat /sys/block/vda/device/features").strip()
    assert bits[33:36] == ("000" if kind == "split" else "111")
    arrives = fleet.slow("--log-level=info")
    there = fleet.machine(arrives, **disk, incoming=True)
    for machine in (guest, there):
        migration.set_capabilities(machine, postcopy_ram=True)
        parameters = {"max-bandwidth": SLOWLY, "max-postcopy-bandwidth": SLOWLY}
        machine.qmp.command("migrate-set-parameters", parameters)
    migration.begin(guest, there, fleet.new_socket("m"))
    migration.wait_sent(guest, SLOWLY)
    guest.qmp.command("migrate-start-postcopy")
    migration.wait_running(there)
    verifier.wait_progress(there, BETWEEN)
    assert status(guest) == "postcopy-active"
    guest.qmp.command("migrate-set-parameters", {"max-postcopy-bandwidth": ANY_SPEED})
    assert migration.wait_end(guest).status == "completed"
    verifier.wait_progress(there, BETWEEN)
    verifier.end(there)
    verifier.check(there, fleet.image)
    assert eventually(lambda: "all of the guest's memory is here" in arrives.report())
