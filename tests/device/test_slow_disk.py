"""A disk that is still busy with a batch when its front-end has gone."""

import os
import threading
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import Type
from peer.process import eventually

from .conftest import Bench

LIMIT = 20
OLD = b"\x11" * 4096
NEW = b"\xab" * len(OLD)


class Slow(vu.BlockDevice):
    """Its callbacks wait until they are told to go on."""

    def __init__(self) -> None:
        super().__init__(size=len(OLD))
        self.begun, self.go_on, self.over = (threading.Event() for _ in range(3))

    def lose_front_end(self, bench: Bench) -> None:
        """Gets a write of the whole disk, and goes on only when the front-end has gone."""
        bench.serve(self)
        front = bench.connect().start()
        disk = front.blk(0)
        disk.submit(disk.prepare(Type.OUT, 0, NEW))
        disk.ring.kick()
        assert self.begun.wait(LIMIT)
        front.channel.close()
        assert eventually(lambda: bench.backend.state == "listening", LIMIT)
        self.go_on.set()
        assert self.over.wait(LIMIT)


class SlowDisk(Slow):
    """Writes all of the batch to a file, at once or one by one."""

    def __init__(self, path: Path, at_once: bool) -> None:
        super().__init__()
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.at_once = at_once
        self.refused = False

    def on_batch(self, batch: vu.BlockBatch, /) -> None:
        requests = [] if self.at_once else list(batch)
        self.begun.set()
        self.go_on.wait(LIMIT)
        try:
            for request in requests:
                request.pwritev(self.fd)
            if self.at_once:
                batch.pwritev(self.fd)
        except vu.StaleRequestError:
            self.refused = True
        self.over.set()


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
def test_a_write_of_a_front_end_that_has_gone_leaves_the_disk_alone(
    bench: Bench, tmp_path: Path, at_once: bool
) -> None:
    """What the driver wrote is gone with its memory, and zeroes are not what it wrote."""
    image = tmp_path / "image"
    image.write_bytes(OLD)
    device = SlowDisk(image, at_once)
    device.lose_front_end(bench)
    os.close(device.fd)
    assert image.read_bytes() == OLD
    assert device.refused is not at_once


class SlowMemory(Slow):
    """Stores a write in this process's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.mem = bytearray(OLD)

    def read(self, offset: int, buf: memoryview) -> None:
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview) -> None:
        self.begun.set()
        self.go_on.wait(LIMIT)
        self.mem[offset : offset + len(buf)] = buf
        self.over.set()


def test_a_view_that_outlives_its_front_end_shows_what_the_driver_wrote(bench: Bench) -> None:
    device = SlowMemory()
    device.lose_front_end(bench)
    assert device.mem == NEW
