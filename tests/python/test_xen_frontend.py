"""A front-end in Python tells of Xen domains' memory, rightly and wrongly."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer import wire
from peer.numbers import Flag, ProtocolFeature, Request
from vhost_user.testing import XenGuest

from .disks import RamDisk

XEN_MMAP = 1 << 17
OFFERED = XEN_MMAP | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
SET_XEN_MMAP = 41
VERSION_1_AND_PROTOCOL_FEATURES = 1 << 32 | 1 << 30

PLACE = bytes.fromhex("0000010000000080 0020000000000000 0000a0010000007f 0000000000000000")
"""Guest address 0x8000000000010000, 0x2000 bytes, user address 0x7f00000001a00000, offset 0."""


class Scribe:
    """A back-end that writes down what it is told, and answers all of it with one verdict."""

    def __init__(self, verdict: int = 0) -> None:
        ours, theirs = socket.socketpair()
        self.front_end = theirs
        self.verdict = verdict
        self.told: list[tuple[int, bytes, int]] = []
        self._channel = wire.Channel(ours)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> vu.Frontend:
        self._thread.start()
        self.connected = vu.Frontend(fd=self.front_end.fileno(), xen=True)
        self.front_end.close()
        return self.connected

    def __exit__(self, *_: object) -> None:
        self.connected.close()
        self._thread.join()
        self._channel.socket.close()

    def _serve(self) -> None:
        values = {
            Request.GET_FEATURES: VERSION_1_AND_PROTOCOL_FEATURES,
            Request.GET_PROTOCOL_FEATURES: OFFERED,
            Request.GET_MAX_MEM_SLOTS: 32,
        }
        while header := self._channel.socket.recv(wire.HEADER.size, socket.MSG_PEEK):
            assert len(header) == wire.HEADER.size
            header, fds, _, _ = socket.recv_fds(self._channel.socket, wire.HEADER.size, 32)
            for fd in fds:
                os.close(fd)
            request, flags, size = wire.HEADER.unpack(header)
            payload = self._channel.socket.recv(size, socket.MSG_WAITALL) if size else b""
            negotiated = request in (Request.SET_OWNER, Request.SET_PROTOCOL_FEATURES, *values)
            if not negotiated:
                self.told.append((request, payload, len(fds)))
            if request in values or flags & Flag.NEED_REPLY:
                answer = values.get(request, 0 if negotiated else self.verdict)
                reply = wire.frame(request, wire.u64(answer), Flag.VERSION | Flag.REPLY)
                self._channel.send(reply)


@pytest.fixture
def device() -> Iterator[int]:
    """A descriptor; of what, no scribe looks at."""
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def region(device: int, flags: int, domain: int = 7) -> vu.XenRegion:
    return vu.XenRegion(
        guest_address=0x8000_0000_0001_0000,
        size=0x2000,
        user_address=0x7F00_0000_01A0_0000,
        flags=flags,
        domain=domain,
        fd=device,
    )


@pytest.mark.parametrize(("flags", "sent"), [(0x102, "02010000"), (0xA, "0a000000")])
def test_the_merged_design_appends_two_numbers_of_32_bits(
    device: int, flags: int, sent: str
) -> None:
    scribe = Scribe()
    with scribe as front:
        front.set_xen_memory([region(device, flags), region(device, flags)])
        front.remove_xen_region(region(device, flags))
    described = PLACE + bytes.fromhex(sent + "07000000")
    assert scribe.told == [
        (Request.SET_MEM_TABLE, bytes([2, 0, 0, 0, 0, 0, 0, 0]) + 2 * described, 2),
        (Request.REM_MEM_REG, bytes(8) + described, 0),
    ]


@pytest.mark.parametrize(("flags", "sent"), [(0x102, "02010000"), (0xA, "0a000000")])
def test_the_review_design_appends_two_numbers_of_64_bits(
    device: int, flags: int, sent: str
) -> None:
    scribe = Scribe()
    with scribe as front:
        front.add_xen_region(region(device, flags, 1 << 40 | 7), design="review")
    described = PLACE + bytes.fromhex(sent + "00000000 0700000000010000")
    assert scribe.told == [(Request.ADD_MEM_REG, bytes(8) + described, 1)]


@pytest.mark.parametrize(("flags", "sent"), [(0x102, "02010000"), (0xA, "0a000000")])
def test_the_design_with_a_message_sends_it_when_it_says_something_new(
    device: int, flags: int, sent: str
) -> None:
    scribe = Scribe()
    with scribe as front:
        front.add_xen_region(region(device, flags), design="message")
        front.add_xen_region(region(device, flags), design="message")
        front.set_xen_memory([region(device, 0x1)], design="message")
    assert scribe.told == [
        (SET_XEN_MMAP, bytes.fromhex(sent + "00000000 0700000000000000"), 0),
        (Request.ADD_MEM_REG, bytes(8) + PLACE, 1),
        (Request.ADD_MEM_REG, bytes(8) + PLACE, 1),
        (SET_XEN_MMAP, bytes.fromhex("0100000000000000 0700000000000000"), 0),
        (Request.SET_MEM_TABLE, bytes([1, 0, 0, 0, 0, 0, 0, 0]) + PLACE, 1),
    ]


def test_the_back_ends_verdict_is_in_the_error(device: int) -> None:
    scribe = Scribe(verdict=22)
    with scribe as front:
        for tell in (front.add_xen_region, front.remove_xen_region):
            with pytest.raises(
                vu.MappingError, match=r"_MEM_REG: refused by the back-end with 0x16"
            ):
                tell(region(device, 0x1))
        with pytest.raises(vu.MappingError, match="SET_XEN_MMAP: refused"):
            front.add_xen_region(region(device, 0x1), design="message")
        with pytest.raises(vu.MappingError, match="SET_XEN_MMAP: refused"):
            front.add_xen_region(region(device, 0x1), design="message")
    assert [request for request, _, _ in scribe.told] == [37, 38, SET_XEN_MMAP, SET_XEN_MMAP]


def test_what_a_message_has_no_room_for_is_refused_with_its_numbers(device: int) -> None:
    scribe = Scribe()
    with scribe as front:
        wide = region(device, 1 << 32)
        with pytest.raises(ValueError, match="flags 0x100000000, domain 7: they have 32 bits each"):
            front.add_xen_region(wide)
        with pytest.raises(ValueError, match="32 bits each"):
            front.remove_xen_region(wide)
        with pytest.raises(ValueError, match="33 regions, a message takes 32"):
            front.set_xen_memory([region(device, 0x1)] * 33)
        two = [region(device, 0x1), region(device, 0x2, 8)]
        with pytest.raises(ValueError, match="0x1 of domain 7 and 0x2 of domain 8"):
            front.set_xen_memory(two, design="message")
        with pytest.raises(ValueError, match="'merged', 'review', 'message', not 'auto'"):
            front.add_xen_region(wide, design="auto")  # type: ignore[arg-type]
    assert scribe.told == []


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"size": 1 << 64}, "size is a number of 64 bits, not 0x10000000000000000"),
        ({"offset": -1}, "offset is a number of 64 bits, not -0x1"),
        ({"fd": -1}, "fd is a number of 31 bits, not -0x1"),
    ],
)
def test_a_region_has_no_number_wider_than_its_field(numbers: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(region(3, 0x1), **numbers)


@pytest.mark.parametrize("name", ["guest_address", "fd", "offset"])
def test_a_region_names_what_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is a number of .. bits, not 'x'"):
        replace(region(3, 0x1), **{name: "x"})  # type: ignore[arg-type]


def test_a_region_shows_its_numbers() -> None:
    assert repr(region(3, vu.XenFlags.GRANT | vu.XenFlags.NO_ADVANCE)) == (
        "XenRegion(guest_address=0x8000000000010000, size=0x2000, user_address=0x7f00000001a00000, "
        "flags=0x102, domain=0x7, fd=0x3, offset=0x0)"
    )


WRONG = {
    "xen mmap flags: 0x10": {"flags": 0x12},
    "foreign and grant mapping exclude each other": {"flags": 0x3},
    "0x8 and 0x100 both mean no mapping in advance": {"flags": 0x10A},
    "xen domain id out of range: 32752": {"domain": 0x7FF0},
    "xen domain id out of range: 70000": {"domain": 70000},
    "mmap offset 0x1000": {"offset": 0x1000},
}


def refuse(guest: XenGuest, path: Path, design: Any, **numbers: int) -> None:
    """Tells of a region with wrong numbers, alone and in a table. That changes nothing, and the
    right one is mapped after it."""
    wrong = replace(guest.region, **numbers)
    with (
        vu.Backend(RamDisk(), socket=path, xen=guest.options()),
        vu.Frontend.connect(path, xen=True) as front,
    ):
        with pytest.raises(vu.MappingError, match="refused by the back-end with 0x1: its log"):
            front.add_xen_region(wrong, design=design)
        assert guest.in_use() == []
        with pytest.raises(vu.MappingError, match="refused by the back-end with 0x1: its log"):
            front.set_xen_memory([wrong], design=design)
        assert guest.in_use() == []
        front.add_xen_region(guest.region, design=design)
        assert len(guest.in_use()) == guest.memory // 4096
        front.remove_xen_region(guest.region, design=design)
        assert guest.in_use() == []


@pytest.mark.parametrize("design", ["merged", "review", "message"])
@pytest.mark.parametrize("mapping", ["foreign", "grant"])
@pytest.mark.parametrize("why", WRONG)
def test_wrong_numbers_are_refused_and_said_and_change_nothing(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, mapping: Any, design: Any, why: str
) -> None:
    guest = XenGuest(mapping, memory=0x2000)
    refuse(guest, vhost_socket, design, **WRONG[why])
    said = [record.getMessage() for record in caplog.records]
    assert [why in line for line in said] == [True, True], said


@pytest.mark.parametrize("design", ["merged", "review", "message"])
@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ("foreign", "domain 1 has no page at 0x140002000"),
        ("grant", "domain 1 does not grant the 3 pages from reference 16 on"),
    ],
)
def test_a_region_with_a_hole_is_refused_and_said(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, mapping: Any, design: Any, why: str
) -> None:
    guest = XenGuest(mapping, memory=0x2000)
    refuse(guest, vhost_socket, design, size=0x3000)
    said = [record.getMessage() for record in caplog.records]
    assert [why in line for line in said] == [True, True], said


def test_a_back_end_without_xen_says_what_it_needs(vhost_socket: Path) -> None:
    with vu.Backend(RamDisk(), socket=vhost_socket):
        with pytest.raises(vu.NegotiationError, match=r"serve with xen=XenOptions\(\) or --xen"):
            vu.Frontend.connect(vhost_socket, xen=True)
        with pytest.raises(vu.NegotiationError, match=r"serve with xen=XenOptions\(\) or --xen"):
            vu.VirtioBlkDriver.connect(vhost_socket, guest=XenGuest())


def test_a_front_end_that_did_not_ask_for_xen_says_what_it_needs(vhost_socket: Path) -> None:
    guest = XenGuest()
    with (
        vu.Backend(RamDisk(), socket=vhost_socket, xen=guest.options()),
        vu.Frontend.connect(vhost_socket) as front,
    ):
        assert not front.protocol_features & XEN_MMAP
        with pytest.raises(vu.NegotiationError, match="connect with xen=True"):
            front.add_xen_region(guest.region)


def test_a_connection_that_is_made_again_is_for_xen_again(vhost_socket: Path) -> None:
    guest = XenGuest("foreign", memory=0x2000)
    with (
        vu.Backend(RamDisk(), socket=vhost_socket, xen=guest.options()),
        vu.Frontend.connect(vhost_socket, xen=True) as front,
    ):
        front.add_xen_region(guest.region)
        front.reconnect()
        assert front.protocol_features & XEN_MMAP
        front.add_xen_region(guest.region)
