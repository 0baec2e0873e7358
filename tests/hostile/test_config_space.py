"""The configuration space: reads that overshoot, writes that are not the driver's to make."""

import pytest
from peer import wire
from peer.blk import CONFIG_WRITEBACK, BlkFeature, Type
from peer.numbers import ProtocolFeature, Request

from .conftest import Refused
from .server import SIZE, Server

CAPACITY = (SIZE // 512).to_bytes(8, "little")
BLOCK_CONFIG = 96
"""Bytes of a block device's configuration, VIRTIO 1.3 "Block Device", "Device configuration
layout"."""


def test_any_part_of_the_configuration_can_be_read(server: Server) -> None:
    front = server.connect().negotiate()
    whole = front.channel.ask(Request.GET_CONFIG, wire.config(0, 60, bytes(60)))[12:]
    assert whole[:8] == CAPACITY
    for offset, size in [(0, 1), (1, 2), (7, 4), (20, 4), (32, 1), (0, 57), (59, 1)]:
        payload = wire.config(offset, size, bytes(size))
        answer = front.channel.ask(Request.GET_CONFIG, payload)
        assert answer == wire.config(offset, size, whole[offset : offset + size])


@pytest.mark.parametrize(
    ("offset", "size", "sent"),
    [
        (0, 0xFFFF_FFFF, 0),
        (0xFFFF_FFFF, 2, 2),
        (60, 256, 256),
        (0, 0, 0),
        (0, 4096 - 12, 4096 - 12),
        (0, 8, 4),
        (4, 4, 8),
    ],
)
def test_a_read_past_the_configuration_shows_nothing(
    server: Server, offset: int, size: int, sent: int
) -> None:
    """Answered with an empty payload, an empty configuration or a close; or with zeroes."""
    front = server.connect().negotiate()
    front.channel.command(Request.GET_CONFIG, wire.config(offset, size, bytes(sent)))
    try:
        answer = front.channel.answer_to(Request.GET_CONFIG)
    except wire.Closed:
        return
    beyond = answer[12 + max(0, BLOCK_CONFIG - offset) :]
    assert beyond == bytes(len(beyond))
    assert len(answer) in (0, 12, 12 + size)
    assert front.lives()


@pytest.mark.parametrize(
    ("offset", "data", "flags"),
    [
        pytest.param(0, bytes(8), 0, id="capacity"),
        pytest.param(0, bytes(8), 1, id="capacity, as if migrated"),
        pytest.param(20, bytes(4), 0, id="block size"),
        pytest.param(BLOCK_CONFIG, b"\1", 0, id="past the end"),
        pytest.param(255, bytes(2), 0, id="across the protocol's limit"),
        pytest.param(0xFFFF_FFFF, bytes(2), 0, id="wraps"),
        pytest.param(CONFIG_WRITEBACK, b"\1", 0xFFFF_FFFF, id="unknown flags"),
        pytest.param(CONFIG_WRITEBACK, b"\2", 0, id="no such cache mode"),
    ],
)
def test_a_write_that_the_driver_may_not_make_is_refused(
    server: Server, refused: Refused, offset: int, data: bytes, flags: int
) -> None:
    front = server.connect().negotiate()
    refused(front, Request.SET_CONFIG, wire.config(offset, len(data), data, flags))


def test_a_write_whose_size_lies_is_refused(server: Server, refused: Refused) -> None:
    front = server.connect().negotiate()
    refused(front, Request.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 2, b"\1"))


def test_the_configuration_is_closed_while_it_was_not_negotiated(
    server: Server, refused: Refused
) -> None:
    front = server.connect().negotiate(protocol=ProtocolFeature.REPLY_ACK)
    payload = wire.config(CONFIG_WRITEBACK, 1, b"\1")
    refused(front, Request.SET_CONFIG, payload)


def test_the_cache_mode_cannot_be_written_while_its_feature_was_not_accepted(
    server: Server, refused: Refused
) -> None:
    front = server.connect().negotiate(never=BlkFeature.CONFIG_WCE)
    refused(front, Request.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, b"\0"))


def test_each_write_is_flushed_once_the_cache_is_off(server: Server) -> None:
    """The switch flushes what was cached; from then on a write ends after its flush."""
    front = server.started()
    assert front.features & BlkFeature.CONFIG_WCE
    disk = front.blk()
    assert disk.write(0, bytes(512)).status == 0
    assert [call for call, _, _ in server.calls()] == ["write"]
    front.change(Request.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, b"\0"))
    assert [call for call, _, _ in server.calls()] == ["write", "flush"]
    for sector in range(3):
        assert disk.write(sector, bytes(512)).status == 0
        assert [call for call, _, _ in server.calls()][-2:] == ["write", "flush"]
    front.change(Request.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, b"\1"))
    assert disk.write(0, bytes(512)).status == 0
    assert server.calls()[-1][0] == "write"


@pytest.mark.parametrize("reset", [Request.SET_STATUS, Request.RESET_DEVICE])
def test_a_cache_that_was_turned_off_stays_off_through_a_reset(
    server: Server, reset: Request
) -> None:
    """QEMU resets the device when its machine pauses, and does not write the mode again."""
    front = server.started()
    front.change(Request.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, b"\0"))
    front.change(reset, wire.u64(0) if reset == Request.SET_STATUS else b"")
    front.change(Request.SET_FEATURES, wire.u64(front.features))
    front.rings.pop(0).close()
    front.start_ring()
    assert front.blk().write(0, bytes(512)).status == 0
    assert [call for call, _, _ in server.calls()][-2:] == ["write", "flush"]


def test_writes_in_flight_when_the_cache_is_turned_off_are_durable_when_they_end(
    server: Server,
) -> None:
    """Sixteen writes wait in the device while the driver turns its cache off."""
    front = server.started()
    disk, ring = front.blk(), front.rings[0]
    server.ask("shut")
    requests = [disk.prepare(Type.OUT, n, bytes(512)) for n in range(16)]
    for request in requests:
        disk.submit(request)
    ring.kick()
    assert server.awaits("waiting", 1)
    payload = wire.config(CONFIG_WRITEBACK, 1, b"\0")
    front.channel.send(wire.frame(Request.SET_CONFIG, payload, 0x9))
    server.ask("open")
    assert front.channel.answer_to(Request.SET_CONFIG) == bytes(8)
    ring.wait(16)
    assert {disk.result(request).status for request in requests} == {0}
    calls = [call for call, _, _ in server.calls()]
    assert calls.count("write") == 16
    assert calls[-1] == "flush"


def test_a_device_without_accepted_flush_flushes_each_write(server: Server) -> None:
    """A driver that cannot flush is promised that a completed write is durable."""
    front = server.started(never=BlkFeature.FLUSH | BlkFeature.CONFIG_WCE)
    assert front.blk().write(0, bytes(512)).status == 0
    assert [call for call, _, _ in server.calls()] == ["write", "flush"]
