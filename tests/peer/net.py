"""Packets of a network device: a header of 12 bytes, then a frame, in one buffer or several.

Source: VIRTIO 1.3, "Network Device", "Device Operation".
"""

import struct

from .memory import GuestMemory
from .ring import Segment, SplitRing

HEADER = struct.Struct("<BBHHHHH")  # flags, kind, three lengths and a place, number of buffers

WHO_HAS = bytes.fromhex(
    "ffffffffffff 525400123456 0806 0001080006040001 525400123456 0a000002 000000000000 0a000001"
)
"""10.0.0.2 asks for the address of 10.0.0.1 (ARP: RFC 826)."""

IS_AT = bytes.fromhex(
    "525400123456 020000000001 0806 0001080006040002 020000000001 0a000001 525400123456 0a000002"
)
"""And 10.0.0.1 answers."""

ECHO = bytes.fromhex(
    "020000000001 525400123456 0800"
    "4500001eb6ae40004001702e 0a000002 0a000001"
    "0800a488 1234 0001 4142"
)
"""10.0.0.2 sends 10.0.0.1 an ICMP echo (RFC 792) with two bytes of data, "AB"."""

REPLY = bytes.fromhex(
    "525400123456 020000000001 0800"
    "4500001eb6ae40004001702e 0a000001 0a000002"
    "0000ac88 1234 0001 4142"
)
"""And 10.0.0.1 replies."""


class NetDriver:
    """A driver on one pair of queues."""

    def __init__(self, memory: GuestMemory, receive: SplitRing, transmit: SplitRing) -> None:
        self._memory = memory
        self._receive = receive
        self._transmit = transmit
        self._posted: dict[int, Segment] = {}

    def post(self, *sizes: int) -> None:
        """Gives the device buffers to fill, of as many bytes each."""
        for size in sizes:
            segment = Segment(self._memory.allocate(size), size, writable=True)
            self._posted[self._receive.add([segment])] = segment
        self._receive.kick()

    def send(self, *packets: bytes) -> None:
        """Sends these, headers and all."""
        for packet in packets:
            place = self._memory.allocate(len(packet))
            self._memory.write(place, packet)
            self._transmit.add([Segment(place, len(packet))])
        self._transmit.kick()

    def wait_taken(self, count: int) -> None:
        """Waits until the device has taken as many packets."""
        lengths = {used.length for used in self._transmit.wait(count)}
        assert lengths == {0}, "the device has written into packets that it was sent"

    def receive(self) -> tuple[bytes, list[bytes]]:
        """Waits for a packet: its header, and the parts of its frame as they lie in the buffers."""
        first = self._take()
        header, parts = first[: HEADER.size], [first[HEADER.size :]]
        for _ in range(HEADER.unpack(header)[-1] - 1):
            parts.append(self._take())
        return header, parts

    def _take(self) -> bytes:
        [used] = self._receive.wait(1)
        segment = self._posted.pop(used.head)
        return self._memory.read(segment.address, used.length)
