"""The disk of the page on slow storage keeps what is written, whatever is under way at a time."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import vhost_user as vu

from .document import blocks

PAGE = Path(__file__).parents[2] / "docs/slow-storage.md"
OBJECT = 1 << 16
BLOCK = 4096
SIZE = 1 << 20


def slow_disk(folder: Path) -> Any:
    """The device, on a store that soon answers."""
    [block] = [b for b in blocks(PAGE.read_text()) if b.note == "file: slow.py"]
    place = folder / "slow.py"
    place.write_text(block.text)
    spec = importlib.util.spec_from_file_location("slow", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SlowDisk(SIZE, threads=8, seconds=0.0001)


def test_what_is_written_across_objects_is_read(
    tmp_path: Path, vhost_blk: vu.testing.BlkFactory
) -> None:
    disk = vhost_blk(slow_disk(tmp_path))
    for length in (512, OBJECT, 2 * OBJECT + 1024):
        data = random.Random(length).randbytes(length)
        disk.pwrite(data, OBJECT - 512)
        assert disk.pread(length, OBJECT - 512) == data
        assert disk.pread(512, OBJECT - 1024) == bytes(512)


def test_writes_to_one_object_at_a_time_lose_nothing(
    tmp_path: Path, vhost_blk: vu.testing.BlkFactory
) -> None:
    disk = vhost_blk(slow_disk(tmp_path))
    # Each block once, and 16 of them lie in an object: a write that another has undone is zeroes.
    assert disk.run_load("write", ops=SIZE // BLOCK, depth=32, verify="none").errors == 0
    data = disk.pread(SIZE, 0)
    lost = [at for at in range(0, SIZE, BLOCK) if not any(data[at : at + BLOCK])]
    assert lost == []
