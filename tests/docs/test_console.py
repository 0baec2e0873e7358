"""The console of the first page, which sends by itself, does what the page says."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.process import eventually
from peer.ring import Segment

from .document import blocks

PAGE = Path(__file__).parents[2] / "docs/start.md"


class Ends(NamedTuple):
    """The device, and a driver's side of it."""

    device: Any
    front: FrontEnd

    def room(self, length: int = 64) -> int:
        """Makes a buffer available to be filled; its address."""
        address = self.front.memory.allocate(length)
        self.front.rings[0].add([Segment(address, length, True)])
        self.front.rings[0].kick()
        return address

    def say(self, text: bytes) -> None:
        address = self.front.memory.allocate(len(text))
        self.front.memory.write(address, text)
        self.front.rings[1].add([Segment(address, len(text))])
        self.front.rings[1].kick()

    def heard(self, *addresses: int) -> bytes:
        used = self.front.rings[0].wait(len(addresses))
        parts = zip(addresses, used, strict=True)
        return b"".join(self.front.memory.read(at, part.length) for at, part in parts)


@pytest.fixture
def console(tmp_path: Path, vhost_socket: Path) -> Iterator[Ends]:
    [block] = [b for b in blocks(PAGE.read_text()) if b.note == "file: console.py"]
    place = tmp_path / "console.py"
    place.write_text(block.text)
    spec = importlib.util.spec_from_file_location("console", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = module.Console()
    with (
        vu.Backend(device, socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start(queues=2) as front,
    ):
        yield Ends(device, front)


def test_what_is_said_comes_back(console: Ends) -> None:
    address = console.room()
    console.say(b"hello")
    assert console.heard(address) == b"hello"
    console.front.rings[1].wait()


def test_what_is_said_waits_for_buffers(console: Ends) -> None:
    console.say(b"first")
    console.say(b"second")
    assert eventually(lambda: len(console.device.said) == 2)
    assert console.heard(console.room()) == b"first"
    assert console.heard(console.room()) == b"second"
    console.front.rings[1].wait(2)


def test_a_long_text_takes_several_buffers(console: Ends) -> None:
    text = bytes(range(100))
    console.say(text)
    assert console.heard(console.room(), console.room()) == text


def test_a_stop_does_not_wait_for_buffers(console: Ends) -> None:
    """It would for 30 seconds, and its answer is waited for 5."""
    console.say(b"never heard")
    assert eventually(lambda: len(console.device.said) == 1)
    assert console.front.stop_ring(1) == 1
    assert console.front.rings[1].used_index == 1
    assert console.front.stop_ring(0) == 0
