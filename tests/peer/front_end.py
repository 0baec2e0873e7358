"""A front-end that behaves, step by step, so that a test can stop before any step and misbehave.

The order is one that every known back-end takes: features, protocol features, memory, then per
ring size, base, addresses, error, call and kick, then enable.
"""

from collections.abc import Iterable
from typing import Self

from . import wire
from .blk import BlkDriver
from .memory import GuestMemory
from .numbers import Feature, ProtocolFeature, Request
from .ring import Ring, SplitRing

WANTED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
RING_FORMATS = Feature.RING_PACKED | Feature.IN_ORDER
UNWANTED = Feature.LOG_ALL | Feature.EVENT_IDX | RING_FORMATS | Feature.ACCESS_PLATFORM


class FrontEnd:
    """One connection, its guest memory and its rings."""

    def __init__(self, channel: wire.Channel, memory: GuestMemory | None = None) -> None:
        self.channel = channel
        self._memory = memory
        self.rings: dict[int, SplitRing] = {}
        self.offered = 0
        self.features = 0
        self.protocol_offered = 0
        self.protocol = 0

    @classmethod
    def connect(cls, path: str, memory: GuestMemory | None = None) -> Self:
        """Dials; no message is sent."""
        return cls(wire.Channel.connect(path), memory)

    @property
    def memory(self) -> GuestMemory:
        """Guest memory; 16 MiB from guest address 0 unless the test brought its own."""
        if self._memory is None:
            self._memory = GuestMemory()
        return self._memory

    # Steps.

    def negotiate(self, *, also: int = 0, never: int = 0, protocol: int | None = None) -> Self:
        """Owner, features and protocol features. `also` and `never` are virtio feature bits."""
        channel = self.channel
        channel.command(Request.SET_OWNER)
        self.offered = channel.ask_u64(Request.GET_FEATURES)
        if self.offered & Feature.PROTOCOL_FEATURES:
            self.protocol_offered = channel.ask_u64(Request.GET_PROTOCOL_FEATURES)
            wanted = WANTED if protocol is None else protocol
            self.protocol = self.protocol_offered & wanted
            channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(self.protocol))
        # Plain integers: the complement of an IntFlag has only the bits that the class knows.
        self.features = self.offered & (~int(UNWANTED) | int(also)) & ~int(never)
        self.change(Request.SET_FEATURES, wire.u64(self.features))
        return self

    def share_memory(self) -> Self:
        """The whole memory table."""
        self.change(Request.SET_MEM_TABLE, self.memory.table(), self.memory.fds)
        return self

    def add_ring(self, index: int = 0, size: int = 64) -> SplitRing:
        """Lays a ring out in guest memory; no message is sent."""
        self.rings[index] = SplitRing(self.memory, size)
        return self.rings[index]

    def ring(self, index: int = 0) -> Ring:
        """A ring that was laid out."""
        return self.rings[index]

    def configure_ring(self, index: int = 0, *, base: int | None = None) -> None:
        """Size, base and addresses."""
        ring = self.ring(index)
        start = ring.START_BASE if base is None else base
        self.change(Request.SET_VRING_NUM, wire.state(index, ring.size))
        self.change(Request.SET_VRING_BASE, wire.state(index, start))
        self.change(Request.SET_VRING_ADDR, self.addresses(index))

    def addresses(self, index: int = 0, **lies: int) -> bytes:
        """The payload of SET_VRING_ADDR; `lies` replace single addresses (front-end's own)."""
        places = self.ring(index).places
        true = {
            "descriptors": self.memory.user(places.descriptors),
            "used": self.memory.user(places.used),
            "available": self.memory.user(places.available),
        }
        return wire.vring_addr(index, **(true | lies))

    def hand_over_events(self, index: int = 0) -> None:
        """The error, call and kick descriptors; the last starts the ring."""
        ring = self.ring(index)
        self.change(Request.SET_VRING_ERR, wire.u64(index), [ring.error_fd])
        self.change(Request.SET_VRING_CALL, wire.u64(index), [ring.call_fd])
        self.change(Request.SET_VRING_KICK, wire.u64(index), [ring.kick_fd])

    def enable(self, index: int = 0, on: int = 1) -> None:
        """Enables or disables a ring; without bit 30 accepted it is enabled anyway."""
        if self.features & Feature.PROTOCOL_FEATURES:
            self.change(Request.SET_VRING_ENABLE, wire.state(index, on))

    def start_ring(self, index: int = 0, size: int = 64, *, base: int = 0) -> SplitRing:
        """All steps of one split ring."""
        ring = self.rings.get(index) or self.add_ring(index, size)
        self.run_ring(index, base=base)
        return ring

    def run_ring(self, index: int = 0, *, base: int | None = None) -> None:
        """All messages of a ring that was laid out."""
        self.configure_ring(index, base=base)
        self.hand_over_events(index)
        self.enable(index)

    def stop_ring(self, index: int = 0) -> int:
        """Drains and stops a ring; gives its next available index."""
        answer = self.channel.ask(Request.GET_VRING_BASE, wire.state(index, 0))
        answered, base = wire.STATE.unpack(answer)
        assert answered == index, f"asked for the base of ring {index}, got that of {answered}"
        return int(base)

    def start(self, queues: int = 1, size: int = 64, **features: int) -> Self:
        """Everything up to running rings."""
        self.negotiate(**features).share_memory()
        for index in range(queues):
            self.start_ring(index, size)
        return self

    def blk(self, index: int = 0) -> BlkDriver:
        """Block requests on one ring."""
        return BlkDriver(self.memory, self.rings[index])

    # Single messages.

    def change(self, request: int, payload: bytes = b"", fds: Iterable[int] | None = None) -> None:
        """A message that must succeed: acknowledged with 0 where that can be asked for."""
        if self.protocol & ProtocolFeature.REPLY_ACK:
            answer = self.channel.acknowledged(request, payload, fds)
            assert answer == 0, f"{Request(request).name} was refused with {answer}"
        else:
            self.channel.command(request, payload, fds)

    def is_refused(
        self, request: int, payload: bytes = b"", fds: Iterable[int] | None = None
    ) -> bool:
        """Sends a message with NEED_REPLY; whether the acknowledgement is not zero."""
        return self.channel.acknowledged(request, payload, fds) != 0

    def is_dropped(
        self, request: int, payload: bytes = b"", fds: Iterable[int] | None = None
    ) -> bool:
        """Sends a message that asks for no answer; whether the connection is then closed."""
        self.channel.command(request, payload, fds)
        return self.channel.is_closed()

    def lives(self) -> bool:
        """The connection still answers."""
        return self.channel.ask_u64(Request.GET_FEATURES) == self.offered

    def close(self) -> None:
        """Hangs up, and frees rings and memory."""
        self.channel.close()
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
