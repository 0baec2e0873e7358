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


class SlowDisk(vu.BlockDevice):
    """Waits in its callback, then writes all of the batch to a file, at once or one by one."""

    def __init__(self, path: Path, at_once: bool) -> None:
        super().__init__(size=len(OLD))
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.at_once = at_once
        self.begun, self.go_on, self.over = (threading.Event() for _ in range(3))
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
    bench.serve(device)
    front = bench.connect().start()
    disk = front.blk(0)
    disk.submit(disk.prepare(Type.OUT, 0, b"\xab" * len(OLD)))
    disk.ring.kick()
    assert device.begun.wait(LIMIT)
    front.channel.close()
    assert eventually(lambda: bench.backend.state == "listening", LIMIT)
    device.go_on.set()
    assert device.over.wait(LIMIT)
    os.close(device.fd)
    assert image.read_bytes() == OLD
    assert device.refused is not at_once


class SlowMemory(vu.BlockDevice):
    """Stores a write only when it is told to go on."""

    def __init__(self) -> None:
        super().__init__(size=len(OLD))
        self.mem = bytearray(OLD)
        self.begun, self.go_on, self.over = (threading.Event() for _ in range(3))

    def read(self, offset: int, buf: memoryview) -> None:
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview) -> None:
        self.begun.set()
        self.go_on.wait(LIMIT)
        self.mem[offset : offset + len(buf)] = buf
        self.over.set()


def test_a_view_that_outlives_its_front_end_shows_what_the_driver_wrote(bench: Bench) -> None:
    device = SlowMemory()
    bench.serve(device)
    front = bench.connect().start()
    disk = front.blk(0)
    disk.submit(disk.prepare(Type.OUT, 0, b"\xab" * len(OLD)))
    disk.ring.kick()
    assert device.begun.wait(LIMIT)
    front.channel.close()
    assert eventually(lambda: bench.backend.state == "listening", LIMIT)
    device.go_on.set()
    assert device.over.wait(LIMIT)
    assert device.mem == b"\xab" * len(OLD)
