"""A network device that answers ping: a host at the other end of the guest's network cable."""

from contextlib import suppress
from ipaddress import IPv4Address

import vhost_user as vu

HEADER = bytes(10) + b"\x01\x00"
"""In front of each packet: nothing is left to do for the driver, all is in this 1 buffer."""

MAC = b"\x02\0\0\0\0\x01"
ARP, IPV4 = b"\x08\x06", b"\x08\0"
ASKS, ANSWERS = b"\0\x01", b"\0\x02"
ICMP, ECHO_REPLY, ECHO = 1, 0, 8


class Ping(vu.Device):
    """The host with the address ``ip`` (VIRTIO 1.3, "Network Device")."""

    device_id = 1

    def __init__(self, ip: str = "10.0.0.1") -> None:
        super().__init__(num_queues=2, receive_queues=(0,))
        self.ip = IPv4Address(ip).packed

    def on_queue(self, queue: vu.Queue) -> None:
        """Takes what the driver transmits, on queue 1; it receives through queue 0."""
        for request in queue:
            frame = bytes(request.readable[len(HEADER) :])
            request.complete(0)
            if answer := self.answer(frame):
                with suppress(vu.GuestError):  # it is longer than the driver's buffers
                    self.queues[0].send(HEADER, answer)

    def answer(self, frame: bytes) -> bytes:
        """What to send back: nothing to a frame that asks for nothing that is here."""
        if frame[12:14] == ARP and frame[20:22] == ASKS and frame[38:42] == self.ip:
            return frame[6:12] + MAC + frame[12:20] + ANSWERS + MAC + self.ip + frame[22:32]
        if frame[12:15] == IPV4 + b"\x45" and frame[30:34] == self.ip:
            end = 14 + int.from_bytes(frame[16:18], "big")
            whole = not int.from_bytes(frame[20:22], "big") & 0x3FFF  # not in fragments
            if whole and 42 <= end <= len(frame) and (frame[23], frame[34]) == (ICMP, ECHO):
                addresses = self.ip + frame[26:30]  # swapped, they have the same checksum
                return frame[6:12] + MAC + frame[12:26] + addresses + echo_reply(frame[34:end])
        return b""


def echo_reply(message: bytes) -> bytes:
    """The reply to an ICMP echo (RFC 792): another type, and the checksum changes as much."""
    checksum = int.from_bytes(message[2:4], "big") + ((ECHO - ECHO_REPLY) << 8)
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    return bytes([ECHO_REPLY, message[1]]) + checksum.to_bytes(2, "big") + message[4:]


if __name__ == "__main__":
    vu.serve(Ping(), socket="ping.sock")
