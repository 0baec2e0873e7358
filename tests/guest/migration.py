"""A guest goes from one QEMU to another, or into a file and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from .rig.machine import Machine

LIMIT = 120.0
"""Seconds for a migration: a twentieth of this where nothing else runs."""

ENDED = ("completed", "failed", "cancelled")
"""States of a migration that change no more: QEMU "QMP Reference Manual", "MigrationStatus"."""


class Migrated(NamedTuple):
    """How a migration ended."""

    status: str
    downtime_ms: int
    """How long no guest ran."""


def set_capabilities(machine: Machine, **capabilities: bool) -> None:
    """Each by its name with underscores for dashes."""
    machine.qmp.command(
        "migrate-set-capabilities",
        {
            "capabilities": [
                {"capability": name.replace("_", "-"), "state": state}
                for name, state in capabilities.items()
            ]
        },
    )


def set_bandwidth(machine: Machine, bytes_per_second: int) -> None:
    machine.qmp.command("migrate-set-parameters", {"max-bandwidth": bytes_per_second})


def monitor(machine: Machine, line: str) -> str:
    """Has QEMU's monitor for people carry out a command; what it says."""
    command = {"command-line": line}
    return str(machine.qmp.command("human-monitor-command", command, seconds=LIMIT))


def begin(source: Machine, destination: Machine, socket: Path) -> None:
    """Has the destination listen, and the source begin to send."""
    destination.qmp.command("migrate-incoming", {"uri": f"unix:{socket}"})
    source.qmp.command("migrate", {"uri": f"unix:{socket}"})


def state(machine: Machine) -> dict[str, Any]:
    """What QEMU tells of its migration."""
    found: dict[str, Any] = machine.qmp.command("query-migrate")
    return found


def wait_sent(source: Machine, size: int) -> None:
    """Waits until so many bytes of memory have been sent, by a migration that is under way."""
    end = time.monotonic() + LIMIT
    while (now := state(source)).get("ram", {}).get("transferred", 0) < size:
        assert now.get("status") in (None, "none", "setup", "active"), now
        assert time.monotonic() < end, now
        time.sleep(0.02)


def wait_end(source: Machine) -> Migrated:
    """Waits for the end of a migration, seen from the source."""
    end = time.monotonic() + LIMIT
    while (now := state(source)).get("status") not in ENDED:
        assert time.monotonic() < end, now
        time.sleep(0.02)
    return Migrated(now["status"], now.get("downtime", 0))


def wait_running(machine: Machine) -> None:
    """Waits until a machine's guest runs."""
    end = time.monotonic() + LIMIT
    while (now := machine.qmp.command("query-status"))["status"] != "running":
        assert time.monotonic() < end, now
        time.sleep(0.02)


def migrate(source: Machine, destination: Machine, socket: Path) -> Migrated:
    """A whole migration; the guest runs at the destination when this returns."""
    begin(source, destination, socket)
    ended = wait_end(source)
    assert ended.status == "completed", state(source)
    wait_running(destination)
    return ended
