"""What a driver or a front-end can cause again and again fills no log: of each kind a hundred lines
are told, and the others counted. Each test counts lines; none looks at a clock."""

import logging
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.ring import Segment

from .disks import RamDisk

TIMES = 400
"""How often each thing happens."""

MOST = 130
"""Lines of one kind: a hundred at once, and two for each 10 s that a slow machine takes."""

NOWHERE = 1 << 40
"""A guest address that no region has."""


def lines_and_events(texts: Iterable[str], said: str) -> tuple[int, int]:
    """How many lines say it, and of how many events they tell."""
    lines = [text for text in texts if said in text]
    older = [re.search(r"\(and (\d+) more like it before\)$", line) for line in lines]
    return len(lines), len(lines) + sum(int(found[1]) for found in older if found)


def restart(front: FrontEnd) -> None:
    front.start_ring()
    front.stop_ring()


def break_the_ring(front: FrontEnd) -> None:
    front.start_ring()
    ring = front.rings[0]
    ring.offer(ring.size)
    ring.kick()
    assert ring.is_broken()
    front.stop_ring()
    ring.reset()


def fail_a_request(front: FrontEnd) -> None:
    """Its status lies nowhere: it fails before the device sees it."""
    front.start_ring()
    ring = front.rings[0]
    if ring.available_index == 0:
        ring.set_descriptor(0, NOWHERE, 16, 0, 0)
    ring.offer(0)
    ring.kick()
    ring.wait()
    front.stop_ring()
    ring.reset()


def refuse(front: FrontEnd) -> None:
    assert front.is_refused(Request.SET_VRING_NUM, wire.state(77, 1))


@pytest.mark.parametrize(
    ("happen", "said"),
    [
        (restart, "queue 0 started"),
        (restart, "queue 0 stopped"),
        (break_the_ring, "queue 0 is broken"),
        (fail_a_request, "queue 0: a request failed"),
        (refuse, "refused: SET_VRING_NUM"),
    ],
)
def test_what_a_front_end_does_again_and_again_is_a_hundred_lines_and_a_number(
    vhost_socket: Path,
    caplog: pytest.LogCaptureFixture,
    happen: Callable[[FrontEnd], None],
    said: str,
) -> None:
    caplog.set_level(logging.DEBUG, "vhost_user")
    with (
        vu.Backend(RamDisk(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.negotiate().share_memory()
        for _ in range(TIMES):
            happen(front)
    lines, events = lines_and_events((r.getMessage() for r in caplog.records), said)
    assert 100 <= lines <= MOST
    assert events == TIMES


def leave(path: str) -> None:
    FrontEnd.connect(path).negotiate().close()


def break_the_protocol(path: str) -> None:
    with FrontEnd.connect(path) as front:
        front.negotiate()
        assert front.is_dropped(Request.SET_VRING_NUM, b"short")


@pytest.mark.parametrize(
    ("happen", "said"),
    [
        (leave, "front-end connected"),
        (leave, "front-end disconnected"),
        (break_the_protocol, "connection closed"),
    ],
)
def test_front_ends_that_come_and_go_are_a_hundred_lines_and_a_number(
    vhost_socket: Path,
    caplog: pytest.LogCaptureFixture,
    happen: Callable[[str], None],
    said: str,
) -> None:
    caplog.set_level(logging.DEBUG, "vhost_user")
    with vu.Backend(RamDisk(), socket=vhost_socket):
        for _ in range(TIMES):
            happen(str(vhost_socket))
    lines, events = lines_and_events((r.getMessage() for r in caplog.records), said)
    assert 100 <= lines <= MOST
    assert events == TIMES


def test_lines_of_one_kind_take_nothing_from_those_of_another(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vhost_user")
    with (
        vu.Backend(RamDisk(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.negotiate().share_memory()
        for _ in range(TIMES):
            restart(front)
        break_the_ring(front)
    said = [r.getMessage() for r in caplog.records]
    assert lines_and_events(said, "queue 0 is broken") == (1, 1)
    assert lines_and_events(said, "front-end disconnected") == (1, 1)


def test_a_callback_that_cannot_be_called_is_told_a_hundred_times_and_counted(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The front-end may read the configuration as often as it likes while another callback is
    stuck."""
    entered, go_on = threading.Event(), threading.Event()
    overlapping: list[str] = []

    class Stuck(vu.Device):
        device_id = 42

        def on_queue(self, queue: vu.Queue, /) -> None:
            entered.set()
            go_on.wait()

        def read_config(self, offset: int, length: int, /) -> bytes:
            if not go_on.is_set():
                overlapping.append("read_config")
            return bytes(length)

    with (
        vu.Backend(Stuck(config=bytes(8)), socket=vhost_socket, drain=0),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.start()
        front.rings[0].add([Segment(front.memory.allocate(16), 16)])
        front.rings[0].kick()
        assert entered.wait(20)
        for _ in range(TIMES):
            front.channel.ask(Request.GET_CONFIG, wire.config(0, 8, bytes(8)))
        assert overlapping == []
        go_on.set()
    said = "read_config was not called: another callback does not return"
    lines, events = lines_and_events((r.getMessage() for r in caplog.records), said)
    assert 100 <= lines <= MOST
    assert events == TIMES
