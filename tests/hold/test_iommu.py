"""A device behind an IOMMU whose back-end is killed: the next one asks for each translation anew,
and takes no answer for its own that the last one was owed."""

import contextlib
import socket
import struct
import threading
from pathlib import Path

from peer import wire
from peer.blk import Type
from peer.front_end import FrontEnd
from peer.memory import PAGE
from peer.numbers import Feature, Flag
from peer.numbers import Request as Message

from .conftest import BACK_ENDS
from .held import Held

ENTRY = struct.Struct("=QQQBB6x")
"""First I/O virtual address, bytes, user address, access (1 read, 2 write), type."""
UPDATE = 2
MISS = 1
SHIFT = 0x77_0000_0000
"""What the device sees of the guest's address 0. Nothing else lies there."""


class Iommu:
    """Answers what a back-end asks for, all of it or as the test says."""

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        self.asked: list[int] = []
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(60)
        with theirs:
            front.change(Message.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])

    def next(self) -> int:
        """The guest's page that is asked for next."""
        number, flags, size = struct.unpack("=III", self._channel.recv(12, socket.MSG_WAITALL))
        assert (number, flags, size) == (1, Flag.VERSION | Flag.NEED_REPLY, ENTRY.size)
        iova, _, _, _, kind = ENTRY.unpack(self._channel.recv(size, socket.MSG_WAITALL))
        assert kind == MISS
        self.asked.append(iova - SHIFT)
        return int(iova - SHIFT) & -PAGE

    def tell(self, page: int) -> None:
        """Tells a translation, and that it was told."""
        entry = ENTRY.pack(page + SHIFT, PAGE, self.front.memory.user(page), 3, UPDATE)
        assert self.front.channel.ask(Message.IOTLB_MSG, entry) == wire.u64(0)
        self.answer(0)

    def answer(self, code: int) -> None:
        """Answers a question; not 0: there is no such translation."""
        frame = wire.frame(Message.GET_FEATURES, wire.u64(code), Flag.VERSION | Flag.REPLY)
        self._channel.sendall(frame)

    def serve(self) -> threading.Thread:
        """Answers all questions from now on, until the channel is closed."""

        def work() -> None:
            with contextlib.suppress(OSError, struct.error):
                while True:
                    self.tell(self.next())

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)


def behind(held: Held) -> tuple[FrontEnd, Iommu]:
    """A front-end whose ring and buffers have I/O virtual addresses."""
    front = held.connect().negotiate(also=Feature.ACCESS_PLATFORM)
    assert front.features & Feature.ACCESS_PLATFORM
    front.share_memory()
    iommu = Iommu(front)
    places = front.add_ring().places
    front.change(Message.SET_VRING_NUM, wire.state(0, front.rings[0].size))
    front.change(Message.SET_VRING_BASE, wire.state(0, 0))
    shifted = {
        "descriptors": places.descriptors + SHIFT,
        "used": places.used + SHIFT,
        "available": places.available + SHIFT,
    }
    front.change(Message.SET_VRING_ADDR, front.addresses(0, **shifted))
    front.hand_over_events()
    front.enable()
    return front, iommu


def ask(front: FrontEnd) -> int:
    """A read of the first sector; gives where its data will be."""
    request = front.blk().prepare(Type.IN, 0, room=512)
    shifted = [segment._replace(address=segment.address + SHIFT) for segment in request.chain()]
    front.rings[0].add(shifted)
    front.rings[0].kick()
    return request.data


def test_the_next_back_end_asks_for_each_translation_anew(folder: Path) -> None:
    (folder / "disk.img").write_bytes(b"\5" * (1 << 20))
    with Held.around(folder, *BACK_ENDS["blk"]) as held:
        front, iommu = behind(held)
        # Of what the first one asks for nothing is told. It is answered when the next one is there.
        iommu.next()
        held.kill_back_end()
        iommu.answer(1)
        thread = iommu.serve()
        for _ in range(3):
            data = ask(front)
            assert front.rings[0].wait(1, 60)[0].length == 513
            assert front.memory.read(data, 512) == b"\5" * 512
            known = len(iommu.asked)
            held.kill_back_end()
        data = ask(front)
        front.rings[0].wait(1, 60)
        assert len(iommu.asked) > known
        iommu.close()
        thread.join()
