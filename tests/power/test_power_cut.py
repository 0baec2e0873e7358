"""Whatever a power cut leaves of a disk: what the driver was told is on stable storage is there."""

import mmap
import os
import threading
from collections.abc import Callable

import pytest
import vhost_user as vu
from device.conftest import Bench
from peer import wire
from peer.blk import CONFIG_WRITEBACK, BlkFeature
from peer.front_end import FrontEnd
from peer.numbers import Request as Message

from .account import Driver, LostError
from .disk import SIZE, VolatileDisk

ROUNDS = int(os.environ.get("POWER_CUTS", "25"))
"""Moments at which each disk is looked at."""

ZEROES = memoryview(mmap.mmap(-1, SIZE)).toreadonly()
"""From the start of a page on, as the driver's data are: the kernel divides a write between two of
the caller's pages, and a sector that lies in both would reach the disk in parts."""


class Methods(vu.BlockDevice):
    """Serves request by request, by calls on a descriptor."""

    def __init__(self, path: str) -> None:
        super().__init__(size=SIZE, num_queues=2)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self, offset: int, buf: memoryview, /) -> None:
        os.preadv(self.fd, [buf], offset)

    def write(self, offset: int, buf: memoryview, /) -> None:
        assert os.pwrite(self.fd, buf, offset) == len(buf)

    def write_zeroes(self, offset: int, length: int, unmap: bool, /) -> None:
        os.pwrite(self.fd, ZEROES[:length], offset)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def on_stop(self) -> None:
        os.close(self.fd)


class Late(Methods):
    """Has Rust move the data, and answers from a thread of its own, in another order."""

    def on_batch(self, batch: vu.BlockBatch, /) -> None:
        late = [request.defer() for request in batch]
        threading.Thread(target=self.answer, args=[late]).start()

    def answer(self, late: list[vu.BlockRequest]) -> None:
        for request in reversed(late):
            if request.op == "write":
                request.pwritev(self.fd)
            elif request.op == "write_zeroes":
                os.pwrite(self.fd, ZEROES[: request.length], request.offset)
            elif request.op == "flush":
                self.flush()
            request.complete()


class Forgetful(Methods):
    """Says that it has flushed."""

    def flush(self) -> None:
        pass


Make = Callable[[str], vu.Device]
DISKS: dict[str, Make] = {
    "file": vu.FileDisk,
    "direct": lambda path: vu.FileDisk(path, direct=True),
    "methods": Methods,
    "late": Late,
}


@pytest.fixture(params=DISKS)
def front(request: pytest.FixtureRequest, disk: VolatileDisk, bench: Bench) -> FrontEnd:
    """A front-end of each kind of disk; nothing is negotiated yet."""
    bench.serve(DISKS[request.param](disk.path))
    return bench.connect()


def cut_again_and_again(driver: Driver, disk: VolatileDisk) -> int:
    """Looks at the disk at many moments; gives how many sectors a cut left to chance, in all."""
    undecided = 0
    for _ in range(ROUNDS):
        driver.turn()
        # The account is older than the state: its promises were made before.
        undecided += driver.account.check(disk.state())
    driver.finish()
    return undecided + driver.account.check(disk.state())


def test_a_flushed_write_outlives_a_power_cut(front: FrontEnd, disk: VolatileDisk) -> None:
    """The flush goes by a queue of its own."""
    driver = Driver(front.start(queues=2), seed=1)
    undecided = cut_again_and_again(driver, disk)
    assert any(driver.account.sure)
    # Else nothing was ever at stake.
    assert undecided or disk.writeback


def test_a_write_outlives_a_power_cut_of_a_driver_that_cannot_flush(
    front: FrontEnd, disk: VolatileDisk
) -> None:
    driver = Driver(front.start(never=BlkFeature.FLUSH), seed=2, flushes=False)
    cut_again_and_again(driver, disk)
    assert driver.account.sure == driver.account.begun


def test_a_write_outlives_a_power_cut_once_the_write_cache_is_off(
    front: FrontEnd, disk: VolatileDisk
) -> None:
    """It is turned off and on while writes are in flight: those that are done by then are safe."""
    driver = Driver(front.start(), seed=3)
    for turn in range(6):
        driver.turn()
        done = list(driver.account.done)
        cached = turn % 2
        front.change(Message.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, bytes([cached])))
        driver.through = not cached
        if not cached:
            driver.account.keep(done)
            driver.account.check(disk.state())
        for _ in range(ROUNDS // 5):
            driver.turn()
            driver.account.check(disk.state())
    driver.finish()
    driver.account.check(disk.state())
    assert any(driver.account.sure)


def test_a_disk_that_does_not_flush_is_found_out(disk: VolatileDisk, bench: Bench) -> None:
    bench.serve(Forgetful(disk.path))
    driver = Driver(bench.connect().start(), seed=1)
    with pytest.raises(LostError):
        cut_again_and_again(driver, disk)
