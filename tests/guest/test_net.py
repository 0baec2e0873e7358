"""A network device in Python, the ``ping`` of the examples, and a Linux guest that pings it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import vhost_user as vu
from vhost_user.examples.ping import Ping

from .conftest import Boot
from .rig.machine import Machine, NetworkDevice
from .rig.tap import Tap

HOST, GUEST = "10.0.0.1", "10.0.0.2"

SIZES = (0, 1, 15, 16, 17, 56, 57, 999, 1471, 1472)
"""Bytes of data; with 1472 a packet is as long as the network takes, 1500."""

REPLIES = 5
PING_SECONDS = 30

PAUSES = 5
BETWEEN_PAUSES = 200
"""Answered packets."""

IN_FLIGHT = 32
START_FLOOD = f"/bin/ping -q -f -l {IN_FLIGHT} -s 1000 {HOST} >/tmp/flood & echo $! >/tmp/pid"
END_FLOOD = """
kill -INT $(cat /tmp/pid)
while test -e /proc/$(cat /tmp/pid); do usleep 10000; done
cat /tmp/flood
"""
MQ = 1 << 22
CONFIGURE_MEM_SLOTS = 1 << 15


class Watched(Ping):
    """Tells how many frames it has answered, and how often it was started and left."""

    def __init__(self) -> None:
        super().__init__(HOST)
        self.answered = 0
        self.starts = 0
        self.disconnects = 0
        self.changed = threading.Condition()

    def on_start(self) -> None:
        self.starts += 1

    def on_disconnect(self) -> None:
        self.disconnects += 1

    def answer(self, frame: bytes) -> bytes:
        answer = super().answer(frame)
        with self.changed:
            self.answered += bool(answer)
            self.changed.notify_all()
        return answer

    def wait_answered(self, more: int, *, seconds: float = 60) -> None:
        with self.changed:
            goal = self.answered + more
            assert self.changed.wait_for(lambda: self.answered >= goal, seconds), self.answered


class Careless(Watched):
    """Changes a byte of the data, and the checksum with it, as no network would notice."""

    def answer(self, frame: bytes) -> bytes:
        answer = bytearray(super().answer(frame))
        if len(answer) > 100:
            answer[100] ^= 0xFF  # an even place: the high byte of a 16-bit word
            more = (answer[100] - (answer[100] ^ 0xFF)) << 8
            checksum = (int.from_bytes(answer[36:38], "big") - more) % 0xFFFF
            answer[36:38] = checksum.to_bytes(2, "big")
        return bytes(answer)


class TwoPairs(Watched):
    """Receives what the driver transmits on two queues, and answers on one."""

    def __init__(self) -> None:
        super().__init__()
        vu.Device.__init__(self, num_queues=4, features=MQ, receive_queues=(0, 2))
        self.kicked: set[int] = set()

    def on_queue(self, queue: vu.Queue) -> None:
        self.kicked.add(queue.index)
        super().on_queue(queue)


@contextmanager
def served(device: Watched, socket: Path) -> Iterator[None]:
    with vu.Backend(device, socket=socket, on_error="raise"):
        yield


def connect(guest: Machine) -> None:
    guest.sh(f"ip link set eth0 up && ip addr add {GUEST}/24 dev eth0")


def ping(guest: Machine, size: int, *, by: str = "") -> list[str]:
    """Pings until ``REPLIES`` replies have come; what the guest's ping prints of the first of them,
    without the time that they took. It complains of data that it has not sent.

    It is called by its path, or else busybox would run its own; without a deadline it would not
    wait for late replies.
    """
    command = f"{by} /bin/ping -n -c {REPLIES} -w {PING_SECONDS} -i 0.01 -s {size} {HOST}"
    # On a slow machine several replies come at once, so that there may be more.
    lines = guest.sh(command).split("\n\n---")[0].splitlines()[1 : REPLIES + 1]
    return [line.partition(" time=")[0] for line in lines]


def replies(size: int) -> list[str]:
    """What it prints if all is well."""
    return [f"{size + 8} bytes from {HOST}: icmp_seq={n + 1} ttl=64" for n in range(REPLIES)]


def test_the_guest_gets_all_its_bytes_back(boot: Boot, socket_path: Path) -> None:
    device = Watched()
    with served(device, socket_path):
        guest = boot(NetworkDevice(socket=socket_path))
        connect(guest)
        for size in SIZES:
            assert ping(guest, size) == replies(size)
        assert (device.starts, device.disconnects) == (1, 0)


def test_the_guests_ping_sees_a_byte_that_was_changed(boot: Boot, socket_path: Path) -> None:
    with served(Careless(), socket_path):
        guest = boot(NetworkDevice(socket=socket_path))
        connect(guest)
        assert "wrong data byte #58 should be 0x3a but was 0xc5" in ping(guest, 999)


def test_the_network_goes_on_after_the_machine_was_paused_under_traffic(
    boot: Boot, socket_path: Path
) -> None:
    """Packets on their way at a pause may be lost, as on any network; the rings may not."""
    device = Watched()
    with served(device, socket_path):
        guest = boot(NetworkDevice(socket=socket_path))
        connect(guest)
        guest.sh(START_FLOOD)
        for _ in range(PAUSES):
            device.wait_answered(BETWEEN_PAUSES)
            guest.pause()
            guest.resume()
        device.wait_answered(BETWEEN_PAUSES)
        flood = guest.sh(END_FLOOD)
        counts = re.search(r"(\d+) packets transmitted, (\d+) received", flood)
        assert counts is not None, flood
        transmitted, received = map(int, counts.groups())
        assert received >= PAUSES * BETWEEN_PAUSES
        assert transmitted - received <= (PAUSES + 1) * IN_FLIGHT
        assert ping(guest, 1472) == replies(1472)
        assert (device.starts, device.disconnects) == (1 + PAUSES, 0)


def test_the_guest_transmits_on_as_many_queues_as_it_has_pairs(
    boot: Boot, socket_path: Path
) -> None:
    # QEMU 7.2 adds the same region of memory for each pair of queues, which is refused: without
    # memory slots it sends one table for all.
    seen = (1 << 64) - 1 & ~CONFIGURE_MEM_SLOTS
    device, path = TwoPairs(), socket_path.with_name("tap.sock")
    tap = Tap(path, socket_path, phase="guest", protocol_features=seen)
    with served(device, socket_path), closing(tap):
        guest = boot(NetworkDevice(socket=path, pairs=2), cpus=2)
        connect(guest)
        for processor in (0, 1):
            assert ping(guest, 56, by=f"taskset -c {processor}") == replies(56)
        assert device.kicked == {1, 3}
