"""What a request costs once everything is warm: counted, not timed."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import vhost_user as vu
from peer.process import eventually

from .disks import RamDisk


class PerRequest(RamDisk):
    """Holds still at times, so that a test can count what there is between two requests."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[int] = []
        self.every = 2000
        self.seen = 0

    def count(self, requests: int) -> None:
        self.seen += requests
        if self.seen >= self.every:
            self.seen -= self.every
            self.blocks.append(sys.getallocatedblocks())

    def read(self, offset: int, buf: memoryview, /) -> None:
        super().read(offset, buf)
        self.count(1)


class PerBatch(PerRequest):
    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            request.copy_from(self.mem[request.offset : request.offset + request.length])
        self.count(len(batch))


class Null(PerRequest):
    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        self.count(len(batch))


@pytest.mark.parametrize("kind", [PerRequest, PerBatch, Null])
def test_no_object_stays_for_a_request(
    vhost_blk: vu.testing.BlkFactory, kind: type[PerRequest]
) -> None:
    device = kind()
    disk = vhost_blk(device)
    disk.run_load(ops=40_000, depth=32, verify="none")
    # The first counts are of warming up: pools fill, the list of counts grows.
    steady = device.blocks[10:]
    assert len(steady) >= 8
    assert max(steady) - min(steady) < 200, f"blocks over {device.every} requests each: {steady}"


def test_a_worker_has_one_thread_state_for_its_life(vhost_blk: vu.testing.BlkFactory) -> None:
    """`threading.local` and the thread's dictionary go with the thread state."""

    class Local(RamDisk):
        local = threading.local()

        def __init__(self) -> None:
            super().__init__()
            self.counts: list[int] = []

        def read(self, offset: int, buf: memoryview, /) -> None:
            self.local.count = getattr(self.local, "count", 0) + 1
            self.counts.append(self.local.count)

    device = Local()
    disk = vhost_blk(device)
    for _ in range(50):
        disk.pread(512, 0)
    assert device.counts == list(range(1, 51))


def test_a_worker_sleeps_without_the_interpreter(vhost_blk: vu.testing.BlkFactory) -> None:
    """Idle back-ends use no processor: neither theirs nor the interpreter's."""
    disk = vhost_blk(RamDisk())
    disk.pread(512, 0)
    tasks = Path("/proc/self/task")

    def switches() -> int:
        total = 0
        for task in tasks.iterdir():
            if (task / "comm").read_text().startswith("vhost-user"):
                status = (task / "status").read_text()
                total += sum(int(s.split()[1]) for s in status.splitlines() if "ctxt" in s)
        return total

    def quiet() -> bool:
        before = switches()
        threading.Event().wait(0.2)
        return switches() == before

    assert eventually(quiet)
    assert os.getpid()
