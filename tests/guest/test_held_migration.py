"""A guest that uses its disk all the time moves, and the back-ends at both ends are killed.

Before the move, while what is written is noted in the dirty log, and when the guest has come.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hold.held import COMMAND, Held

from . import migration
from .fleet import Fleet
from .rig.packages import NEWEST
from .test_migration import BETWEEN, QUICKLY, SLOWLY
from .verifier import Verifier

RUN_WITH = (NEWEST,)
PACKED = ",packed=on"


@pytest.fixture
def fleet(tmp_path: Path, socket_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, socket_path, request.node)
    yield fleet
    fleet.close()


def held(folder: Path, image: Path, *options: str) -> Held:
    folder.mkdir()
    return Held.around(folder, *COMMAND, "blk", str(image), *options)


def test_a_guest_moves_though_the_back_ends_at_both_ends_die(
    fleet: Fleet, socket_path: Path
) -> None:
    here, there = socket_path.with_name("here"), socket_path.with_name("there")
    with held(here, fleet.image) as leaves, held(there, fleet.image, "--incoming") as arrives:
        guest = fleet.machine(leaves, properties=PACKED)
        verifier = Verifier(guest)
        leaves.kill_back_end()
        verifier.wait_progress(guest, BETWEEN)
        destination = fleet.machine(arrives, properties=PACKED, incoming=True)
        arrives.kill_back_end()
        migration.set_bandwidth(guest, SLOWLY)
        migration.begin(guest, destination, fleet.new_socket("m"))
        migration.wait_sent(guest, SLOWLY)
        leaves.kill_back_end()
        verifier.wait_progress(guest, BETWEEN)
        migration.set_bandwidth(guest, QUICKLY)
        assert migration.wait_end(guest).status == "completed"
        migration.wait_running(destination)
        verifier.wait_progress(destination, BETWEEN)
        arrives.kill_back_end()
        verifier.wait_progress(destination, BETWEEN)
        verifier.end(destination)
        verifier.check(destination, fleet.image)
