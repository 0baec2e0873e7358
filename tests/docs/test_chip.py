"""The I2C adapter of the page on hosts with Xen does what a driver expects of one."""

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.ring import Segment

from .document import blocks

PAGE = Path(__file__).parents[2] / "docs/xen-host.md"
READ = 2
ZERO_LENGTH_REQUEST = 1
RING = 1024
"""Entries of the ring that xen-vhost-frontend has for an I2C adapter."""


@pytest.fixture
def adapter(tmp_path: Path, vhost_socket: Path) -> Iterator[FrontEnd]:
    """A driver's side of the adapter."""
    [block] = [b for b in blocks(PAGE.read_text()) if b.note == "file: chip.py"]
    place = tmp_path / "chip.py"
    place.write_text(block.text)
    spec = importlib.util.spec_from_file_location("chip", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with (
        vu.Backend(module.Chip(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start(size=RING) as front,
    ):
        yield front


def transfer(front: FrontEnd, address: int, *, write: bytes = b"", read: int = 0) -> bytes:
    """One message as Linux lays it out, in descriptors of their own; the data, and the status."""
    memory, ring = front.memory, front.rings[0]
    header = struct.pack("<HHI", address << 1, 0, READ if read else 0)
    parts = [(header, False), (write, False), (b"\xff" * read, True), (b"\xff", True)]
    segments = []
    for content, writable in parts:
        if content:
            segments.append(Segment(memory.allocate(len(content)), len(content), writable))
            memory.write(segments[-1].address, content)
    ring.add(segments)
    ring.kick()
    [used] = ring.wait()
    assert used.length == read + 1
    return b"".join(memory.read(s.address, s.length) for s in segments if s.writable)


def test_the_feature_that_linux_insists_on_is_offered(adapter: FrontEnd) -> None:
    assert adapter.offered & ZERO_LENGTH_REQUEST


def test_what_was_written_is_read_back(adapter: FrontEnd) -> None:
    assert transfer(adapter, 0x50, write=b"\xff\x12\x34") == b"\0"
    assert transfer(adapter, 0x50, write=b"\xff") == b"\0"
    assert transfer(adapter, 0x50, read=2) == b"\x12\x34\0"
    assert transfer(adapter, 0x50, read=1) == b"\0\0"


def test_every_entry_of_the_front_ends_long_ring_is_used(adapter: FrontEnd) -> None:
    for turn in range(RING // 2 + 1):
        content = bytes([turn % 251, turn % 7])
        assert transfer(adapter, 0x50, write=b"\x10" + content) == b"\0"
        assert transfer(adapter, 0x50, write=b"\x10") == b"\0"
        assert transfer(adapter, 0x50, read=2) == content + b"\0"


def test_a_chip_that_is_not_there_fails_its_message(adapter: FrontEnd) -> None:
    assert transfer(adapter, 0x51) == b"\1"
    assert transfer(adapter, 0x50) == b"\0"
