"""A guest that reads and writes all the time goes from one QEMU to another, or into a file and
back: its disk and its memory have all that it wrote and read.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer.process import eventually

from . import migration
from .fleet import Fleet
from .rig.machine import Machine
from .rig.packages import MIDDLE, NEWEST, Packages
from .verifier import Verifier

RUN_WITH = (NEWEST,)
MOVES = int(os.environ.get("GUEST_MIGRATIONS", "3"))
"""How often a guest moves from QEMU to QEMU."""

PAGE = Path(__file__).parents[2] / "docs/operations.md"

BETWEEN = 200
"""Requests of the guest between two events."""

SLOWLY = 1 << 20
"""Bytes a second of a migration that does not come to its end."""

QUICKLY = 1 << 33

READ = "dd if=/dev/vda of=/dev/null iflag=direct bs=4k 2>/dev/null"

ONE_MORE_DEVICE = ["-device", "virtio-rng-pci"]


@pytest.fixture
def fleet(tmp_path: Path, socket_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, socket_path, request.node)
    yield fleet
    fleet.close()


def test_a_guest_moves_between_versions_of_qemu_and_back(fleet: Fleet) -> None:
    guest = fleet.machine(fleet.blk(), MIDDLE)
    verifier = Verifier(guest)
    downtimes = []
    for suite in itertools.islice(itertools.cycle([NEWEST, NEWEST, MIDDLE]), MOVES):
        verifier.wait_progress(guest, BETWEEN)
        there = fleet.machine(fleet.blk("--incoming"), suite, incoming=True)
        downtimes.append(migration.migrate(guest, there, fleet.new_socket("m")).downtime_ms)
        verifier.wait_progress(there, BETWEEN)
        guest.close()
        guest = there
    verifier.end(guest)
    verifier.check(guest, fleet.image)
    print(f"{MOVES} moves, without a guest for {sorted(downtimes)} ms")


def test_a_guest_moves_by_the_commands_of_the_page(fleet: Fleet) -> None:
    guest = fleet.machine(fleet.blk())
    verifier = Verifier(guest)
    there = fleet.machine(fleet.blk("--incoming"), incoming=True)
    uri = f"unix:{fleet.new_socket('m')}"
    commands = re.findall(r"^\((source|destination)\) (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 4
    for at, command in commands:
        machine = {"source": guest, "destination": there}[at]
        said = migration.monitor(machine, re.sub(r"tcp:\S+", uri, command))
        assert (said == "") != command.startswith("info"), said
    assert migration.wait_end(guest).status == "completed"
    migration.wait_running(there)
    verifier.wait_progress(there, BETWEEN)
    verifier.end(there)
    verifier.check(there, fleet.image)


def test_a_guest_whose_migration_fails_goes_on(fleet: Fleet) -> None:
    source = fleet.blk()
    guest = fleet.machine(source, options=ONE_MORE_DEVICE)
    verifier = Verifier(guest)

    def destination(*options: str) -> Machine:
        return fleet.machine(fleet.blk("--incoming"), options=options, incoming=True)

    # Cancelled, with a part of the memory there.
    migration.set_bandwidth(guest, SLOWLY)
    there = destination(*ONE_MORE_DEVICE)
    migration.begin(guest, there, fleet.new_socket("m"))
    migration.wait_sent(guest, SLOWLY)
    guest.qmp.command("migrate_cancel")
    assert migration.wait_end(guest).status == "cancelled"
    verifier.wait_progress(guest, BETWEEN)
    there.close()

    # The destination dies.
    there = destination(*ONE_MORE_DEVICE)
    migration.begin(guest, there, fleet.new_socket("m"))
    migration.wait_sent(guest, SLOWLY)
    there.kill()
    assert migration.wait_end(guest).status == "failed"
    verifier.wait_progress(guest, BETWEEN)

    # The destination does not know a device, which it hears of when the guest has stopped.
    migration.set_bandwidth(guest, QUICKLY)
    there = destination()
    migration.set_capabilities(guest, return_path=True)
    migration.begin(guest, there, fleet.new_socket("m"))
    assert migration.wait_end(guest).status == "failed"
    migration.wait_running(guest)
    verifier.wait_progress(guest, BETWEEN)
    there.close()

    # The guest arrives, does not run, and is continued at the source.
    there = destination(*ONE_MORE_DEVICE, "-S")
    migration.begin(guest, there, fleet.new_socket("m"))
    assert migration.wait_end(guest).status == "completed"
    there.close()
    guest.resume()
    verifier.wait_progress(guest, BETWEEN)

    there = destination(*ONE_MORE_DEVICE)
    migration.migrate(guest, there, fleet.new_socket("m"))
    verifier.wait_progress(there, BETWEEN)

    # It runs at the destination, and cannot at the source too.
    assert "in use" not in source.report()
    guest.resume()
    assert eventually(lambda: "disk.img is in use: process " in source.report()), source.report()
    verifier.wait_progress(there, BETWEEN)
    verifier.end(there)
    verifier.check(there, fleet.image)


@pytest.mark.parametrize(
    "properties",
    ["", ",inflight-migration=on", ",inflight-migration=on,packed=on,in_order=on"],
    ids=["drained", "in-flight", "in-flight, packed"],
)
def test_a_guest_with_a_slow_disk_moves(fleet: Fleet, properties: str) -> None:
    guest = fleet.machine(fleet.slow(), properties=properties)
    verifier = Verifier(guest)
    there = fleet.machine(fleet.slow(), properties=properties, incoming=True)
    migration.migrate(guest, there, fleet.new_socket("m"))
    verifier.wait_progress(there, BETWEEN)
    verifier.end(there)
    verifier.check(there, fleet.image)


def goes_back(log: str) -> bool:
    """Whether a ring started last below where it had stopped before."""
    (stopped,) = re.findall(r"queue 0 stopped at (\d+)", log)[-1:]
    (started,) = re.findall(r"queue 0 started: \d+ entries, base (\d+)", log)[-1:]
    return int(started) < int(stopped)


def test_a_guest_goes_back_to_a_snapshot_and_into_a_file_and_out_of_it(
    fleet: Fleet, packages: Packages, tmp_path: Path
) -> None:
    snapshots = tmp_path / "snapshots.qcow2"
    qemu_img = [*packages.program("usr/bin/qemu-img"), "create", "-q", "-f", "qcow2"]
    subprocess.run([*qemu_img, str(snapshots), "512M"], check=True)
    drive = ["-drive", f"if=none,id=snapshots,file={snapshots}"]
    back_end = fleet.blk("--log-level=debug")
    guest = fleet.machine(back_end, options=drive)

    # The ring goes back with the guest, to before what it has used since.
    guest.sh(f"{READ} count=50")
    assert migration.monitor(guest, "savevm one") == ""
    guest.sh(f"{READ} count=50")
    assert migration.monitor(guest, "loadvm one") == ""
    verifier = Verifier(guest)
    assert eventually(lambda: goes_back(back_end.report())), back_end.report()
    verifier.wait_progress(guest, BETWEEN)

    saved = {"uri": f"file:{tmp_path / 'saved'}"}
    guest.qmp.command("migrate", saved)
    assert migration.wait_end(guest).status == "completed"
    guest.close()
    there = fleet.machine(back_end, options=drive, incoming=True)
    there.qmp.command("migrate-incoming", saved)
    migration.wait_running(there)
    verifier.wait_progress(there, BETWEEN)
    verifier.end(there)
    verifier.check(there, fleet.image)
