"""The driver's side of a packed virtqueue, with every field within a test's reach.

Source: VIRTIO 1.3, "Packed Virtqueues". `PackedRing` behaves; a test that wants to misbehave writes
descriptors through the same methods that the good driver uses. Descriptors are counted from the
start of the ring on: slot and wrap counter follow from the count.
"""

import select
import time
from collections.abc import Sequence

from . import wire
from .blk import Requests, Status, Type
from .front_end import FrontEnd
from .memory import GuestMemory
from .numbers import Feature, ProtocolFeature
from .numbers import Request as Message
from .patience import PATIENCE
from .ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Places, Ring, Segment, Timeout, Used, drain
from .wire import Channel

AVAIL, USED = 1 << 7, 1 << 15
BASE = 0x8000_8000
"""SET_VRING_BASE of a new ring: slot 0 and wrap counter 1, available and used."""


class PackedRing(Ring):
    """One virtqueue, the driver's side: `size` descriptors, and the two event areas."""

    START_BASE = BASE
    DEVICE_WRITES = (True, False, True)

    def __init__(self, memory: GuestMemory, size: int, places: Places | None = None) -> None:
        parts = zip(self.part_bytes(size), (16, 4, 4), strict=True)
        super().__init__(memory, size, places or Places(*(memory.allocate(*one) for one in parts)))
        self._fields = memory.view(self.places.descriptors, 16 * size).cast("H")
        self._hidden: list[tuple[int, int]] = []
        self._free = list(range(size))
        self._slots: dict[int, int] = {}
        self.next = 0
        self.seen = 0

    @staticmethod
    def part_bytes(size: int) -> tuple[int, int, int]:
        """The descriptors and the two event areas."""
        return 16 * size, 4, 4

    # Descriptors.

    def address(self, count: int) -> int:
        """The guest address of the descriptor with this number."""
        return self.places.descriptors + 16 * (count % self.size)

    def wrap(self, count: int) -> bool:
        """The wrap counter that goes with it."""
        return count // self.size % 2 == 0

    def available(self, count: int) -> int:
        """The two flags that make it available."""
        return AVAIL if self.wrap(count) else USED

    def flags(self, count: int) -> int:
        """Its flags now."""
        return self._fields[8 * (count % self.size) + 7]

    def set_flags(self, count: int, flags: int) -> None:
        """Writes its flags with one store."""
        self._fields[8 * (count % self.size) + 7] = flags

    def put(self, address: int, length: int, id_: int, flags: int) -> None:
        """Writes the next descriptor; its two flags are made available by `offer` if it is the
        first since then, and at once otherwise."""
        flags |= self.available(self.next)
        if not self._hidden:
            self._hidden.append((self.next, flags))
            flags = self.flags(self.next)
        self.memory.write(self.address(self.next), DESCRIPTOR.pack(address, length, id_, flags))
        self.next += 1

    def bytes(self) -> bytes:
        """All descriptors."""
        return self.memory.read(self.places.descriptors, 16 * self.size)

    # The well-behaved driver.

    def add(self, segments: Sequence[Segment]) -> int:
        """Makes one chain available without a kick; gives its id."""
        id_ = self.lay(segments)
        self.offer()
        return id_

    def lay(self, segments: Sequence[Segment]) -> int:
        """Writes one chain; gives its id, which the last descriptor alone has."""
        id_ = self._free.pop(0)
        for place, segment in enumerate(segments):
            last = place == len(segments) - 1
            flags = (WRITE if segment.writable else 0) | (0 if last else NEXT)
            self.put(segment.address, segment.length, id_ if last else 0xBAD0, flags)
        self._slots[id_] = len(segments)
        return id_

    def add_indirect(self, table: int, length: int, extra_flags: int = 0) -> int:
        """Makes a table available; gives the id."""
        id_ = self._put_table(table, length, INDIRECT | extra_flags)
        self.offer()
        return id_

    def lay_indirect(self, table: int, segments: Sequence[Segment]) -> int:
        """Writes one chain through an indirect table at `table`; gives its id."""
        self._write_table(table, segments)
        return self._put_table(table, 16 * len(segments), INDIRECT)

    def _put_table(self, table: int, length: int, flags: int) -> int:
        id_ = self._free.pop(0)
        self.put(table, length, id_, flags)
        self._slots[id_] = 1
        return id_

    def write_table(self, segments: Sequence[Segment], extra_flags: int = 0) -> int:
        """Writes an indirect table, whose entries follow one another; gives its place."""
        table = self.memory.allocate(16 * len(segments))
        self._write_table(table, segments, extra_flags)
        return table

    def _write_table(self, table: int, segments: Sequence[Segment], extra_flags: int = 0) -> None:
        flags = [(WRITE if one.writable else 0) | extra_flags for one in segments]
        entries = [
            DESCRIPTOR.pack(one.address, one.length, 0xBAD0, flag)
            for one, flag in zip(segments, flags, strict=True)
        ]
        self.memory.write(table, b"".join(entries))

    def offer(self, *_: int) -> None:
        """Shows the device what was written, all at once."""
        for count, flags in self._hidden:
            self.set_flags(count, flags)
        self._hidden.clear()

    def is_used(self) -> bool:
        """Whether the next descriptor to be used is."""
        used = AVAIL | USED if self.wrap(self.seen) else 0
        return self.flags(self.seen) & (AVAIL | USED) == used

    def wait(self, count: int = 1, seconds: float = PATIENCE) -> list[Used]:
        """Waits, from call to call, until `count` more chains are used; takes them back."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.call_fd, select.POLLIN)
        taken: list[Used] = []
        while len(taken) < count:
            if self.is_used():
                taken.append(self._take())
            elif poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                drain(self.call_fd)
            else:
                raise Timeout(f"no call within {seconds} s; {len(taken)} of {count} are used")
        return taken

    def _take(self) -> Used:
        data = self.memory.read(self.address(self.seen), 16)
        _, length, id_, _ = DESCRIPTOR.unpack(data)
        self._free.append(id_)
        self.seen += self._slots.pop(id_)
        return Used(id_, length)

    def reset(self) -> None:
        """Begins anew, for a ring that is stopped."""
        self.memory.write(self.places.descriptors, bytes(16 * self.size))
        self._hidden.clear()
        self._free = list(range(self.size))
        self._slots.clear()
        self.next = self.seen = 0

    def close(self) -> None:
        """Closes the event descriptors and lets go of the memory."""
        super().close()
        self._fields.release()


class PackedFrontEnd:
    """A front-end whose rings are packed."""

    def __init__(self, front: FrontEnd, *, protocol: ProtocolFeature | None = None) -> None:
        self.front = front.negotiate(also=Feature.RING_PACKED, protocol=protocol)
        assert front.features & Feature.RING_PACKED
        front.share_memory()
        self.requests = Requests(front.memory)
        self.rings: dict[int, PackedRing] = {}

    @property
    def channel(self) -> Channel:
        """The connection."""
        return self.front.channel

    @property
    def memory(self) -> GuestMemory:
        """The guest's."""
        return self.front.memory

    def start_ring(self, index: int = 0, size: int = 64, base: int = BASE) -> PackedRing:
        """All steps of one ring."""
        ring = self.rings.get(index) or PackedRing(self.memory, size)
        self.rings[index] = ring
        change, user = self.front.change, self.memory.user
        change(Message.SET_VRING_NUM, wire.state(index, ring.size))
        change(Message.SET_VRING_BASE, wire.state(index, base))
        descriptors, driver, device = map(user, ring.places)
        change(
            Message.SET_VRING_ADDR,
            wire.vring_addr(index, descriptors=descriptors, available=driver, used=device),
        )
        change(Message.SET_VRING_ERR, wire.u64(index), [ring.error_fd])
        change(Message.SET_VRING_CALL, wire.u64(index), [ring.call_fd])
        change(Message.SET_VRING_KICK, wire.u64(index), [ring.kick_fd])
        self.front.enable(index)
        return ring

    def stop_ring(self, index: int = 0) -> int:
        """Drains and stops a ring; gives its base."""
        return self.front.stop_ring(index)

    def restart_ring(self, index: int = 0) -> PackedRing:
        """Stops a ring and starts it from its beginning."""
        self.stop_ring(index)
        self.rings[index].reset()
        return self.start_ring(index)

    def read(self, index: int = 0, sector: int = 0, length: int = 512) -> bytes:
        """Reads from the disk."""
        request = self.requests.prepare(Type.IN, sector, room=length)
        ring = self.rings[index]
        id_ = ring.add(request.chain())
        ring.kick()
        assert ring.wait() == [Used(id_, length + 1)]
        result = self.requests.result(request)
        assert result.status == Status.OK
        return result.data

    def write(self, index: int, sector: int, data: bytes) -> None:
        """Writes to the disk."""
        request = self.requests.prepare(Type.OUT, sector, data)
        ring = self.rings[index]
        ring.add(request.chain())
        ring.kick()
        ring.wait()
        assert self.requests.result(request).status == Status.OK

    def close(self) -> None:
        """Closes the rings; the connection is the front-end's."""
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
