"""A Linux guest whose back-end is killed under load, again and again: no request fails or hangs,
and every byte is right.

QEMU dials again by itself, or notices nothing since the back-end is held.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

import pytest
from hold.held import COMMAND, SOCKET, Held
from peer.process import eventually
from peer.shuffling import SHUFFLING

from .conftest import Boot
from .rig.machine import Device
from .rig.packages import MIDDLE, NEWEST, Packages, fetch, is_newest
from .verifier import Verifier

RUN_WITH = (MIDDLE, NEWEST)

KILLS = int(os.environ.get("GUEST_KILLS", "2"))
"""How often a back-end is killed in each test."""

MODEL = "vhost-user-blk-pci,num-queues="

PROGRAM = f'{SHUFFLING}import os\nvu.serve(Shuffling(), socket=os.environ.get("SOCKET"))'

BACK_ENDS = {
    "blk": ([*COMMAND, "blk", "disk.img"], 1),
    "blk with 4 queues": ([*COMMAND, "blk", "disk.img"], 4),
    "any order": ([sys.executable, "-c", PROGRAM], 1),
}
"""What serves the image, and the guest's queues. The last answers from Python, in any order."""


class Mortal(Protocol):
    """A back-end that is killed, and followed by another one."""

    socket: Path

    def kill_back_end(self) -> None: ...


class Dialled:
    """One that QEMU has to find again; a context manager that ends it."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.socket = folder / SOCKET
        self._folder = folder
        listens = command[1] == "-c"  # The program finds it in the environment.
        self._command = command if listens else [*command, "--socket-path", SOCKET]
        self._start()

    def _start(self) -> None:
        environment = os.environ | {"SOCKET": SOCKET}
        self._process = subprocess.Popen(self._command, cwd=self._folder, env=environment)

    def kill_back_end(self) -> None:
        """Kills it with all that it has in hand, and starts the next one."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._start()

    def __enter__(self) -> Self:
        assert eventually(self.socket.exists, 60), "it does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(params=BACK_ENDS)
def command(request: pytest.FixtureRequest) -> tuple[list[str], int]:
    return BACK_ENDS[request.param]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[list[float]]:
    """Milliseconds that single requests took at most; told at the end of a long run."""
    longest: list[float] = []
    yield longest
    if len(longest) >= 10:
        print(
            f"\n{request.node.name}: {len(longest)} kills, the longest request "
            f"{statistics.median(longest):.0f} ms in the median, {max(longest):.0f} ms at most"
        )


def kill_under_load(
    boot: Boot, device: Device, cpus: int, mortal: Mortal, image: Path
) -> list[float]:
    """Kills back-ends, each at a random moment of a load that is checked. Milliseconds that the
    longest request took, for each.
    """
    chance = random.Random(3)
    # A kernel and its programs that the tree of QEMU 10.0 has not.
    guest = boot(device, cpus=cpus, system=fetch(NEWEST))
    verifier = Verifier(guest)
    longest = []
    for _ in range(KILLS):
        verifier.wait_progress(guest, chance.randrange(1, 100))
        verifier.forget_longest(guest)
        mortal.kill_back_end()
        # More than there may have been told late of those before.
        verifier.wait_progress(guest, 50)
        longest.append(verifier.longest_ms(guest))
    verifier.end(guest)
    verifier.check(guest, image)
    assert "I/O error" not in guest.sh("dmesg")
    return longest


def test_a_guest_loses_nothing_with_a_back_end_that_qemu_finds_again(
    boot: Boot, packages: Packages, command: tuple[list[str], int], image: Path, report: list[float]
) -> None:
    words, queues = command
    with Dialled(image.parent, words) as mortal:
        rings = ",packed=on,in_order=on" if is_newest(packages) else ""
        model = f"{MODEL}{queues}{rings}"
        device = Device(model=model, socket=mortal.socket, reconnect=True)
        report += kill_under_load(boot, device, queues, mortal, image)


def test_a_guest_loses_nothing_with_a_back_end_that_is_held(
    boot: Boot, packages: Packages, command: tuple[list[str], int], image: Path, report: list[float]
) -> None:
    words, queues = command
    with Held.around(image.parent, *words, options=["--give-up-after=0"]) as mortal:
        rings = "" if is_newest(packages) else ",packed=on"
        model = f"{MODEL}{queues}{rings}"
        device = Device(model=model, socket=mortal.socket)
        report += kill_under_load(boot, device, queues, mortal, image)
