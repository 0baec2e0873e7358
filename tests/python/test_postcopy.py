"""A device in Python whose guest's memory comes page by page."""

import fcntl
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import WANTED, FrontEnd
from peer.memory import PAGE, GuestMemory, Region
from peer.numbers import ProtocolFeature, Request
from peer.patience import PATIENCE, is_readable
from peer.process import eventually
from peer.ring import Segment

UFFDIO_WAKE = 0x8010AA02
"""Linux, ioctl_userfaultfd(2): whoever waits for these pages looks again."""

HUGE = 2 << 20
HUGE_PAGES = 3

PAGEFAULT = 0x12
"""Linux, userfaultfd(2): the kind of a message."""


class Pages:
    """What the back-end misses, and where it has the region of the front-end's memory."""

    def __init__(self, front: FrontEnd, size: int = PAGE) -> None:
        """Negotiates, listens, and shares memory that has no page of this size yet."""
        self.front, channel = front, front.channel
        self._size = size
        front.negotiate(protocol=WANTED | ProtocolFeature.PAGEFAULT)
        assert front.protocol & ProtocolFeature.PAGEFAULT, "run these tests as root"
        assert channel.ask(Request.POSTCOPY_ADVISE) == b""
        self.fd = channel.descriptors.pop()
        assert channel.acknowledged(Request.POSTCOPY_LISTEN) == 0
        answer = channel.ask(Request.SET_MEM_TABLE, front.memory.table(), front.memory.fds)
        (_, guest, size, self.base, offset) = struct.unpack("<QQQQQ", answer)
        assert (guest, size, offset) == (0, front.memory.regions[0].size, 0)
        channel.command(Request.SET_MEM_TABLE, wire.u64(0))

    def next(self) -> int:
        """Waits for a page that somebody misses; gives its guest address."""
        assert is_readable(self.fd, PATIENCE), "no page is missed"
        message = os.read(self.fd, 32)
        assert message[0] == PAGEFAULT
        (address,) = struct.unpack_from("<Q", message, 16)
        return int((address - self.base) & -self._size)

    def bring(self, guest: int, data: bytes) -> None:
        """Brings a page, which begins with these bytes."""
        self.front.memory.write(guest, data.ljust(self._size, b"\0"))
        fcntl.ioctl(self.fd, UFFDIO_WAKE, struct.pack("<QQ", self.base + guest, self._size))

    def end(self) -> None:
        """All pages are there."""
        assert self.front.channel.ask_u64(Request.POSTCOPY_END) == 0

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def huge_memory() -> Iterator[GuestMemory]:
    """Memory of huge pages, as many as the machine lends for this test."""
    sizes = re.findall(r"Hugepagesize: +(\d+) kB", Path("/proc/meminfo").read_text())
    if sizes != [str(HUGE >> 10)]:
        pytest.skip(f"this kernel has no huge pages of 2 MiB but {sizes} KiB")
    number = Path("/proc/sys/vm/nr_hugepages")
    before = int(number.read_text())
    try:
        number.write_text(str(before + HUGE_PAGES))
    except OSError as error:
        pytest.skip(f"huge pages cannot be reserved: {error}")
    try:
        if int(number.read_text()) < before + HUGE_PAGES:
            pytest.skip(f"this machine has no {HUGE_PAGES} huge pages to spare")
        memory = GuestMemory(Region(0, HUGE_PAGES * HUGE, huge=True))
        yield memory
        memory.close()
    finally:
        number.write_text(str(before))


class Echo(vu.Device):
    """Gives back what it gets, and notes it."""

    device_id = 41

    def __init__(self) -> None:
        super().__init__(num_queues=2)
        self.seen: list[tuple[int, bytes]] = []

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            data = bytes(request.readable)
            self.seen.append((queue.index, data))
            request.writable[: len(data)] = data
            request.complete(len(data))


class Port(vu.Device):
    """Takes buffers by itself."""

    device_id = 41

    def __init__(self) -> None:
        super().__init__(num_queues=1, receive_queues=(0,))


def ask(front: FrontEnd, index: int, page: int, length: int) -> None:
    """A request whose data is in a page, and whose answer is to be behind it there."""
    ring = front.rings[index]
    ring.add([Segment(page, length), Segment(page + 2048, length, True)])
    ring.kick()


def test_a_page_that_does_not_come_holds_up_its_queue_and_not_the_interpreter(
    vhost_socket: Path,
) -> None:
    device = Echo()
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        pages = Pages(front)
        first, second = (front.memory.allocate(PAGE, PAGE) for _ in range(2))
        for index in range(2):
            front.start_ring(index)
        ask(front, 0, first, 3)
        assert pages.next() == first
        # This thread runs Python code, and so does the device for its other queue.
        front.memory.write(second, b"two")
        ask(front, 1, second, 3)
        front.rings[1].wait()
        assert device.seen == [(1, b"two")]
        pages.bring(first, b"one")
        front.rings[0].wait()
        assert device.seen == [(1, b"two"), (0, b"one")]
        assert front.memory.read(first + 2048, 3) == b"one"
        pages.end()
        pages.close()


def test_a_device_that_takes_a_buffer_waits_for_its_page_without_the_interpreter(
    vhost_socket: Path,
) -> None:
    device = Port()
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        pages = Pages(front)
        page = front.memory.allocate(PAGE, PAGE)
        ring = front.start_ring()
        ring.add([Segment(page, 8, True)])
        ring.kick()
        eventually(lambda: device.queues[0].size > 0)
        taken: list[bytes] = []

        def take() -> None:
            # The worker may not have looked at the ring yet.
            while (request := device.queues[0].take()) is None:
                time.sleep(0.001)
            taken.append(bytes(request.writable))
            request.writable[:] = b"received"
            request.complete(8)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert pages.next() == page
        assert not taken
        pages.bring(page, b"formerly")
        thread.join(PATIENCE)
        ring.wait()
        assert taken == [b"formerly"]
        assert front.memory.read(page, 8) == b"received"
        pages.end()
        pages.close()


def test_the_device_hears_nothing_of_a_request_whose_front_end_has_left(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Echo()
    with vu.Backend(device, socket=vhost_socket):
        with FrontEnd.connect(str(vhost_socket)) as front:
            pages = Pages(front)
            page = front.memory.allocate(PAGE, PAGE)
            front.start_ring()
            ask(front, 0, page, 3)
            assert pages.next() == page
            pages.close()
        with FrontEnd.connect(str(vhost_socket)) as front:
            front.start()
            place = front.memory.allocate(PAGE, PAGE)
            front.memory.write(place, b"next")
            ask(front, 0, place, 4)
            front.rings[0].wait()
    assert device.seen == [(0, b"next")]
    eventually(lambda: "before all of the guest's memory is here" in caplog.text)


def test_huge_pages_come_one_by_one(vhost_socket: Path, huge_memory: GuestMemory) -> None:
    device = Echo()
    with vu.Backend(device, socket=vhost_socket):
        front = FrontEnd.connect(str(vhost_socket), huge_memory)
        pages = Pages(front, HUGE)
        first, second = (huge_memory.allocate(PAGE, HUGE) for _ in range(2))
        ring = front.start_ring()
        ask(front, 0, first + PAGE, 3)
        assert pages.next() == first
        assert device.seen == []
        pages.bring(first, bytes(PAGE) + b"one")
        ring.wait()
        assert device.seen == [(0, b"one")]
        assert huge_memory.read(first + PAGE + 2048, 3) == b"one"
        huge_memory.write(second, b"two")
        ask(front, 0, second, 3)
        ring.wait()
        assert device.seen[1:] == [(0, b"two")]
        pages.end()
        pages.close()
        front.channel.close()
