"""The package's own driver goes on when its back-end is killed at random moments: everything that
was acknowledged is on the disk, and each request is answered once."""

import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import vhost_user as vu
from peer.shuffling import SHUFFLING

KILLS = int(os.environ.get("RECOVERY_ROUNDS", "20"))
QUEUES = 2
BLOCK = 4096
BLOCKS = 64
LIMIT = 60.0

NURSERY = f"""{SHUFFLING}
DEVICES = {{
    "blk": lambda: vu.FileDisk("disk.img", num_queues=2),
    "shuffling": lambda: Shuffling(num_queues=2),
}}

while True:
    child = os.fork()
    if not child:
        vu.serve(DEVICES[NAME](), socket="disk.sock")
        os._exit(1)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
"""A process that starts the next back-end when one has ended: a fork is faster than a new
interpreter."""


class Nursery:
    """Back-ends one after the other, in a folder with their image."""

    def __init__(self, folder: Path, device: str) -> None:
        program = f"NAME = {device!r}\n{NURSERY}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._child = self._next()

    def _next(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kills the back-end; returns when the next one has been born."""
        os.kill(self._child, signal.SIGKILL)
        self._child = self._next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class Writer(threading.Thread):
    """Writes the whole disk again and again, each time with other data, and reads it back."""

    def __init__(self, disk: vu.VirtioBlkDriver) -> None:
        super().__init__()
        self._disk = disk
        self._over = threading.Event()
        self.laps = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            for seed in itertools.count(1):
                report = self._disk.run_load(
                    "write", block_bytes=BLOCK, depth=16, ops=BLOCKS, seed=seed
                )
                assert report.errors == 0
                assert self._disk.pread(BLOCK * BLOCKS, 0) == content(seed), f"lap {seed}"
                self.laps = seed
                if self._over.is_set():
                    return
        except Exception as error:
            self.failure = error

    def finish(self) -> None:
        """Lets the present lap be the last."""
        self._over.set()
        self.join(LIMIT)
        assert not self.is_alive()
        if self.failure:
            raise self.failure


def content(seed: int) -> bytes:
    """What ``run_load`` writes: word ``n`` of the disk is ``seed + n * 0x9e3779b97f4a7c15``."""
    count = BLOCK * BLOCKS // 8
    words = ((seed + n * 0x9E3779B97F4A7C15) & (1 << 64) - 1 for n in range(count))
    return struct.pack(f"<{count}Q", *words)


@pytest.fixture(params=["blk", "shuffling"])
def nursery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nursery]:
    """Back-ends of each kind."""
    (tmp_path / "disk.img").write_bytes(bytes(BLOCK * BLOCKS))
    with Nursery(tmp_path, request.param) as served:
        yield served


@pytest.mark.parametrize("in_order", [False, True], ids=["any order", "in order"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_what_was_acknowledged_is_there_whenever_the_back_end_is_killed(
    nursery: Nursery, tmp_path: Path, packed: bool, in_order: bool
) -> None:
    chance = random.Random(KILLS)
    disk = vu.VirtioBlkDriver(
        tmp_path / "disk.sock",
        num_queues=QUEUES,
        packed=packed,
        in_order=in_order,
        inflight=True,
        timeout=LIMIT,
    )
    writer = Writer(disk)
    writer.start()
    for _ in range(KILLS):
        time.sleep(chance.random() * 0.05)
        nursery.kill()
    writer.finish()
    assert disk.reconnections
    disk.close()
    assert (tmp_path / "disk.img").read_bytes() == content(writer.laps)
