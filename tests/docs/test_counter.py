"""The device of the API page that sends from a thread of its own does what the page says."""

import importlib.util
import threading
from pathlib import Path
from typing import Any

import vhost_user as vu
from peer.front_end import FrontEnd
from peer.ring import Segment

from .document import blocks

PAGE = Path(__file__).parents[2] / "docs/api.md"


def counter(folder: Path) -> Any:
    """The device, which counts as fast as it can."""
    [block] = [b for b in blocks(PAGE.read_text()) if b.note == "file: counter.py"]
    place = folder / "counter.py"
    place.write_text(block.text)
    spec = importlib.util.spec_from_file_location("counter", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Counter(every=0.001)


def test_its_thread_sends_while_queues_run_and_ends_with_them(
    tmp_path: Path, vhost_socket: Path
) -> None:
    device = counter(tmp_path)
    with (
        vu.Backend(device, socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start(queues=2) as front,
    ):
        ring, memory = front.rings[0], front.memory
        places = [memory.allocate(16) for _ in range(3)]
        for place in places:
            ring.add([Segment(place, 16, True)])
        used = ring.wait(3)
        parts = zip(places, used, strict=True)
        numbers = [int(memory.read(place, part.length)) for place, part in parts]
        assert numbers == sorted(set(numbers)), "each is told once, and in order"
        for index in (1, 0):
            front.stop_ring(index)
    assert not device.thread.is_alive()
    assert device.thread not in threading.enumerate()
