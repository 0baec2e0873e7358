"""Features, and messages at times when they make no sense."""

from collections.abc import Callable

import pytest
from peer import wire
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.numbers import Feature, ProtocolFeature, Request

from .conftest import Refused
from .server import Server

QUEUES = 2
"""Queues of the default victim."""

OF_DISKS = 0x3_FEF7
"""VIRTIO 1.3, "Block Device", "Feature bits", and its legacy ones."""

ZONED = 1 << 17
ZONE_APPEND = 15
FLUSH_OUT = 5


def bits_not_in(offered: int) -> list[int]:
    return [1 << bit for bit in range(64) if not offered & 1 << bit]


def test_each_feature_that_was_not_offered_is_refused_alone(server: Server) -> None:
    """But for those that the standard has for disks: they do no harm."""
    front = server.connect().negotiate()
    for bit in bits_not_in(front.offered | OF_DISKS):
        assert front.is_refused(Request.SET_FEATURES, wire.u64(front.features | bit)), hex(bit)
    front.share_memory().start_ring()
    assert front.blk().read(0, 512).status == 0


def test_harmless_features_that_were_not_offered_change_nothing(server: Server) -> None:
    """The zeroes of a zoned disk's configuration, and a request that only such a disk has."""
    front = server.connect().negotiate()
    surplus = OF_DISKS & ~front.offered
    assert surplus & ZONED
    assert not front.is_refused(Request.SET_FEATURES, wire.u64(front.features | surplus))
    front.share_memory().start_ring()
    disk = front.blk()
    assert disk.run(disk.prepare(ZONE_APPEND, 0, b"\1" * 512)).status == Status.UNSUPP
    assert disk.read(0, 512).data == bytes(512)


def test_each_protocol_feature_that_was_not_offered_is_refused_alone(server: Server) -> None:
    front = server.connect().negotiate()
    for bit in bits_not_in(front.protocol_offered):
        payload = wire.u64(front.protocol | bit)
        assert front.is_refused(Request.SET_PROTOCOL_FEATURES, payload), hex(bit)
    assert front.lives()


@pytest.mark.parametrize("bit", [ProtocolFeature.XEN_MMAP, ProtocolFeature.INBAND_NOTIFICATIONS])
def test_features_that_qemu_accepts_blindly_are_not_offered(server: Server, bit: int) -> None:
    """QEMU keeps these bits without implementing them; one changes the regions' size."""
    assert not server.connect().negotiate().protocol_offered & bit


def test_all_features_at_once_are_refused(server: Server, refused: Refused) -> None:
    front = server.connect().negotiate()
    refused(front, Request.SET_FEATURES, wire.u64((1 << 64) - 1))


def test_a_disk_serves_a_driver_of_the_legacy_interface(server: Server) -> None:
    """OVMF drives a disk in QEMU's ordinary slot so. FLUSH_OUT is its other number for a flush."""
    front = server.connect().negotiate(never=Feature.VERSION_1).share_memory()
    front.start_ring()
    disk = front.blk()
    data = b"legacy! " * 64
    assert disk.write(3, data).status == Status.OK
    assert disk.read(3, 512).data == data
    assert server.calls()[-1] == ("read", 1536, 512)
    assert disk.run(disk.prepare(FLUSH_OUT, 0)).status == Status.OK
    assert server.calls()[-1] == ("flush", 0, 0)
    assert not front.is_refused(Request.SET_STATUS, wire.u64(0xF))
    assert front.channel.ask_u64(Request.GET_STATUS) == 0xF


def test_tracking_of_the_base_without_its_region_is_refused(
    server: Server, refused: Refused
) -> None:
    """GET_VRING_BASE_INFLIGHT depends on INFLIGHT_SHMFD."""
    front = server.connect().negotiate()
    protocol = front.protocol & ~ProtocolFeature.INFLIGHT_SHMFD
    with_base = protocol | ProtocolFeature.GET_VRING_BASE_INFLIGHT
    refused(front, Request.SET_PROTOCOL_FEATURES, wire.u64(with_base))


def test_the_owner_may_be_set_twice(server: Server) -> None:
    front = server.connect().negotiate()
    front.channel.command(Request.SET_OWNER)
    front.share_memory().start_ring()
    assert front.blk().read(0, 512).status == 0


def test_the_owner_may_be_reset_twice(server: Server) -> None:
    front = server.connect().negotiate()
    front.channel.acknowledged(Request.RESET_OWNER)
    front.channel.acknowledged(Request.RESET_OWNER)
    assert front.lives()


@pytest.mark.parametrize("request_", list(Request), ids=lambda request: request.name)
def test_any_message_may_come_first(server: Server, request_: Request) -> None:
    """Answered, refused or dropped, with descriptors and without; never more than that."""
    for fds in (None, [server.memfd()]):
        channel = server.channel()
        channel.send(wire.frame(request_, bytes(40), 0x9), fds)
        try:
            channel.receive()
        except wire.Closed:
            continue
        assert channel.ask_u64(Request.GET_FEATURES)
        server.hang_up()


def no_memory(front: FrontEnd) -> None:
    front.change(Request.SET_VRING_NUM, wire.state(0, 64))
    front.channel.acknowledged(Request.SET_VRING_ADDR, front.addresses())


def no_addresses(front: FrontEnd) -> None:
    front.share_memory()
    front.change(Request.SET_VRING_NUM, wire.state(0, 64))


def no_size(front: FrontEnd) -> None:
    front.share_memory()
    front.change(Request.SET_VRING_ADDR, front.addresses())


@pytest.mark.parametrize("prepare", [no_memory, no_addresses, no_size])
def test_a_kick_descriptor_for_an_unfinished_ring_is_refused(
    server: Server, refused: Refused, prepare: Callable[[FrontEnd], None]
) -> None:
    front = server.connect().negotiate()
    ring = front.add_ring()
    prepare(front)
    refused(front, Request.SET_VRING_KICK, wire.u64(0), [ring.kick_fd])
    assert ring.used_index == 0


@pytest.mark.parametrize(("index", "on"), [(0, 2), (0, 0xFFFF_FFFF), (QUEUES, 1), (0xFFFF_FFFF, 1)])
def test_enabling_with_a_wrong_value_or_queue_is_refused(
    server: Server, refused: Refused, index: int, on: int
) -> None:
    front = server.connect().negotiate()
    refused(front, Request.SET_VRING_ENABLE, wire.state(index, on))


def test_the_base_of_a_ring_that_never_started_is_the_stored_one(server: Server) -> None:
    front = server.connect().negotiate()
    assert front.stop_ring(1) == 0
    front.change(Request.SET_VRING_BASE, wire.state(1, 7))
    assert front.stop_ring(1) == 7
    assert front.stop_ring(1) == 7


def test_the_base_of_a_stopped_ring_does_not_change(server: Server) -> None:
    front = server.started()
    front.blk().read(0, 512)
    front.blk().read(0, 512)
    assert [front.stop_ring(), front.stop_ring()] == [2, 2]


@pytest.mark.parametrize("index", [QUEUES, 0x1_0000, 0xFFFF_FFFF])
def test_the_base_of_a_queue_that_does_not_exist_is_not_answered(
    server: Server, index: int
) -> None:
    """GET_VRING_BASE has no error form."""
    front = server.connect().negotiate()
    assert front.is_dropped(Request.GET_VRING_BASE, wire.state(index, 0))


@pytest.mark.parametrize("what", ["size", "base", "addresses"])
def test_a_running_ring_cannot_be_configured_anew(
    server: Server, refused: Refused, what: str
) -> None:
    front = server.started()
    assert front.blk().read(0, 512).status == 0
    messages = {
        "size": (Request.SET_VRING_NUM, wire.state(0, 32)),
        "base": (Request.SET_VRING_BASE, wire.state(0, 9)),
        "addresses": (
            Request.SET_VRING_ADDR,
            front.addresses(descriptors=front.memory.user(0x10_0000)),
        ),
    }
    refused(front, *messages[what])
    if front.channel.is_open():
        assert front.blk().read(0, 512).status == 0
        assert front.stop_ring() == 2
