"""The echo device of the examples under DPDK's driver: every byte that is sent comes back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import vhost_user as vu
from vhost_user.examples.echo import MRG_RXBUF, Echo

from .conftest import Drive
from .packets import numbered
from .rig.testpmd import BUFFER_BYTES, BURST, DEVICE, FILES, RING

HEADER_BYTES = 12
ORDINARY = (60, 61, 590, 1514)
LONG = (
    BUFFER_BYTES,  # as much as one buffer holds
    BUFFER_BYTES + 1,  # two
    2 * BUFFER_BYTES + HEADER_BYTES,  # two, filled: the header is in the first alone
    2 * BUFFER_BYTES + HEADER_BYTES + 1,  # three
    9728,  # the longest that this driver takes
)


class Watched(Echo):
    """Tells how many packets it has sent back, and how often it was started and left."""

    def __init__(self, pairs: int = 1) -> None:
        super().__init__(pairs)
        self.sent_back = 0
        self.starts = 0
        self.disconnects = 0
        self.changed = threading.Condition()

    def on_start(self) -> None:
        self._count("starts", 1)

    def on_disconnect(self) -> None:
        self._count("disconnects", 1)

    def on_buffers(self, queue: vu.Queue) -> None:
        before = len(self.waiting[queue.index])
        super().on_buffers(queue)
        self._count("sent_back", before - len(self.waiting[queue.index]))

    def wait(self, name: str, value: int, *, seconds: float = 60) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: getattr(self, name) == value, seconds), (
                f"{name} is {getattr(self, name)}, not {value}"
            )

    def _count(self, name: str, more: int) -> None:
        with self.changed:
            setattr(self, name, getattr(self, name) + more)
            self.changed.notify_all()


@contextmanager
def served(socket: Path, pairs: int = 1) -> Iterator[Watched]:
    device = Watched(pairs)
    with vu.Backend(device, socket=socket, on_error="raise"):
        yield device


def cycle(lengths: tuple[int, ...], count: int) -> list[int]:
    return list(itertools.islice(itertools.cycle(lengths), count))


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_every_packet_comes_back_on_the_pair_that_sent_it(
    pairs: int, drive: Drive, socket_path: Path
) -> None:
    count = 20 * RING // pairs  # the rings go round many times
    packets = [numbered(cycle(ORDINARY, count), pair=pair) for pair in range(pairs)]
    with served(socket_path, pairs):
        driver = drive(packets)
        driver.command("start")
        driver.wait_back(driver.sent)
        assert driver.quit() == packets


def test_a_packet_that_is_longer_than_a_buffer_comes_back_in_several(
    drive: Drive, socket_path: Path
) -> None:
    packets = [numbered(cycle((*LONG, *ORDINARY), 3 * RING))]
    with served(socket_path) as device:
        driver = drive(packets)
        driver.command("start")
        driver.wait_back(driver.sent)
        assert device.negotiated_features & MRG_RXBUF
        assert driver.quit() == packets


def test_without_mergeable_buffers_a_packet_that_is_too_long_is_lost_alone(
    drive: Drive, socket_path: Path
) -> None:
    packets = numbered(cycle((*ORDINARY, *LONG), 9 * 40))
    fitting = [packet for packet in packets if len(packet) <= BUFFER_BYTES]
    assert len(fitting) == 5 * 40
    with served(socket_path) as device:
        driver = drive([packets], "mrg_rxbuf=0")
        driver.command("start")
        driver.wait_back(len(fitting))
        assert not device.negotiated_features & MRG_RXBUF
        assert driver.quit() == [fitting]


def test_a_port_stops_and_starts_under_traffic(drive: Drive, socket_path: Path) -> None:
    """DPDK leaves the rings as they are meanwhile, and says nothing to the back-end. What is
    missing afterwards is what testpmd could not send when it stopped, its last burst at most, and
    what the driver found received when the port started: it throws that away."""
    packets = numbered(cycle(ORDINARY, 60 * RING))
    with served(socket_path) as device:
        driver = drive([packets])
        driver.command("start")
        driver.wait_back(10 * RING)
        driver.command("stop")
        read = driver.counter(FILES, "RX-packets")
        sent, received = (driver.counter(DEVICE, n) for n in ("TX-packets", "RX-packets"))
        assert 10 * RING <= received <= sent <= read < len(packets), "the traffic was over too soon"
        assert read - sent <= BURST
        thrown_away = min(sent - received, RING)
        device.wait("sent_back", received + thrown_away)
        driver.command("port stop 0")
        driver.command("port start 0")
        driver.command("start")
        back = packets[:received] + packets[received + thrown_away : sent] + packets[read:]
        driver.wait_back(len(back))
        assert (device.starts, device.disconnects) == (1, 0)
        assert driver.quit() == [back]


def test_the_next_driver_is_served_after_the_first_has_left(
    drive: Drive, socket_path: Path
) -> None:
    """Each leaves with a ring full of buffers for packets to come."""
    with served(socket_path, 2) as device:
        for run in (1, 2):
            packets = [numbered(ORDINARY, pair=pair + run) for pair in range(2)]
            driver = drive(packets)
            driver.command("start")
            driver.wait_back(driver.sent)
            assert driver.quit() == packets
            device.wait("disconnects", run)
        assert device.starts == 2
