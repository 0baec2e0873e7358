"""A block device."""

from .common import files

DEVICE = '''\
"""The device."""

import vhost_user as vu


class {Class}(vu.BlockDevice):
    """A disk in memory. To return is to complete a request, to raise OSError is to fail it."""

    def __init__(self, size: int, *, serial: str = "{name}") -> None:
        super().__init__(size=size, serial=serial[:20])
        self.memory = bytearray(size)

    def read(self, offset: int, buf: memoryview) -> None:
        buf[:] = self.memory[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview) -> None:
        self.memory[offset : offset + len(buf)] = buf

    def flush(self) -> None:
        """What was written has to be on stable storage when this returns; memory has none."""
'''

TEST = '''\
"""The device is served at a socket of its own, and driven by a front-end: no virtual machine."""

import pytest
import vhost_user as vu
from vhost_user.testing import BlkFactory

from {module} import {Class}

SIZE = 1 << 20


def test_what_was_written_is_read(vhost_blk: BlkFactory) -> None:
    disk = vhost_blk({Class}(SIZE))
    disk.pwrite(b"x" * 4096, 8192)
    disk.flush()
    assert disk.pread(4096, 8192) == b"x" * 4096
    assert disk.pread(512, 0) == bytes(512)


def test_the_disk_has_its_size(vhost_blk: BlkFactory) -> None:
    assert vhost_blk({Class}(SIZE)).size == SIZE


def test_nothing_lies_behind_the_end(vhost_blk: BlkFactory) -> None:
    disk = vhost_blk({Class}(SIZE))
    with pytest.raises(vu.RequestError):
        disk.pread(512, SIZE)
'''

FILES = files(settings=" size=64M", type_option="", device=DEVICE, test=TEST)
