"""The examples are devices that work, as they are found in the repository and in the package."""

import os
import struct
from pathlib import Path

import pytest
import vhost_user.examples
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.ring import Segment

from .command import Server

PACKAGE = Path(vhost_user.examples.__path__[0])
REPOSITORY = Path(__file__).parents[2] / "examples"


def test_the_repository_and_the_package_have_the_same_examples() -> None:
    def found(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.glob("*.py")}

    assert found(REPOSITORY) == found(PACKAGE)


@pytest.mark.parametrize("name", ["ramdisk.py:RamDisk", "batched.py:BatchedRamDisk"])
def test_a_ram_disk_keeps_what_was_written(name: str) -> None:
    words = ["run", f"{REPOSITORY}/{name}", "size=1M", "--socket-path", "e.sock"]
    with Server(*words), FrontEnd.connect("e.sock").start() as peer:
        disk = peer.blk()
        data = os.urandom(8192)
        assert disk.write(100, data).status == Status.OK
        assert disk.read(100, 8192).data == data
        assert disk.read(99, 512).data == bytes(512)
        assert disk.read(2048, 512).status == Status.IOERR


def test_the_numbered_disk_tells_where_it_was_read() -> None:
    with Server("run", f"{REPOSITORY}/numbered.py", "--socket-path", "e.sock") as server:
        assert server.first_line == "listening on e.sock  blk 1 TiB 16 queues"
        with FrontEnd.connect("e.sock").start() as peer:
            sector = (1 << 31) - 1
            words = range(sector * 512, (sector + 1) * 512, 8)
            assert peer.blk().read(sector, 512).data == struct.pack("<64Q", *words)
            assert peer.blk().write(0, bytes(512)).status == Status.IOERR


def test_the_entropy_device_fills_what_it_is_offered() -> None:
    words = ["run", f"{REPOSITORY}/rng.py", "--socket-path", "e.sock"]
    with Server(*words), FrontEnd.connect("e.sock").start() as peer:
        place = peer.memory.allocate(4096)
        peer.rings[0].add([Segment(place, 4096, True)])
        peer.rings[0].kick()
        (used,) = peer.rings[0].wait(1)
        assert used.length == 4096
        assert len(set(peer.memory.read(place, 4096))) > 200
