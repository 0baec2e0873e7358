"""Orders of messages that real front-ends use, each with its own habits; all must work.

They are written down from the front-ends' documentation and sources. The orders that a running
QEMU was seen to send are replayed from recordings elsewhere in the tests.
"""

import socket

import pytest
from peer import wire
from peer.blk import Type
from peer.front_end import UNWANTED, FrontEnd
from peer.memory import GuestMemory, Region
from peer.numbers import Feature, Flag, ProtocolFeature, Request

from .server import Server

QUEUES = 2


def works(front: FrontEnd, queues: int = QUEUES) -> None:
    """Each queue reads what it wrote, and stops where it should."""
    for index in range(queues):
        front.rings[index].kick()
        disk = front.blk(index)
        data = bytes([index + 1]) * 4096
        assert disk.write(8 * index, data).status == 0
        assert disk.read(8 * index, 4096).data == data
        assert front.stop_ring(index) == 2


def test_the_order_of_dpdk_virtio_user(server: Server) -> None:
    """Calls before features, guest address equal to user address, an empty control message on
    every frame, each status step, and only three protocol features."""
    memory = GuestMemory(Region(0x1_0000_0000, 4 << 20, user=0x1_0000_0000))
    front = server.connect(memory)
    channel = front.channel
    wanted = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS
    channel.command(Request.SET_OWNER, b"", ())
    offered = int.from_bytes(channel.ask(Request.GET_FEATURES, b"", ()), "little")
    protocol = int.from_bytes(channel.ask(Request.GET_PROTOCOL_FEATURES, b"", ()), "little")
    assert protocol & wanted == wanted
    channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(wanted), ())
    for index in range(QUEUES):
        ring = front.add_ring(index, 256)
        channel.command(Request.SET_VRING_CALL, wire.u64(index), [ring.call_fd])
    accepted = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
    assert offered & accepted == accepted
    front.protocol, front.features = wanted, accepted
    for status in (0, 1, 3):
        channel.command(Request.SET_STATUS, wire.u64(status), ())
    front.change(Request.SET_FEATURES, wire.u64(accepted), ())
    channel.command(Request.SET_STATUS, wire.u64(11), ())
    front.change(Request.SET_MEM_TABLE, memory.table(), memory.fds)
    for index in range(QUEUES):
        front.configure_ring(index)
        channel.command(Request.SET_VRING_KICK, wire.u64(index), [front.rings[index].kick_fd])
    for index in range(QUEUES):
        front.change(Request.SET_VRING_ENABLE, wire.state(index, 1), ())
    channel.command(Request.SET_STATUS, wire.u64(15), ())
    works(front)


def test_the_order_of_crosvm(server: Server) -> None:
    """No acknowledgement ever, 32 regions, addresses before the base, enabled ring by ring."""
    regions = [Region(n << 20, 1 << 20) for n in range(32)]
    front = server.connect(GuestMemory(*regions))
    ours, theirs = socket.socketpair()
    server.track(ours)
    server.track(theirs)
    channel = front.channel
    channel.command(Request.SET_OWNER)
    features = channel.ask_u64(Request.GET_FEATURES)
    wanted = ProtocolFeature.CONFIG | ProtocolFeature.MQ | ProtocolFeature.BACKEND_REQ
    assert channel.ask_u64(Request.GET_PROTOCOL_FEATURES) & wanted == wanted
    channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(wanted))
    channel.command(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    assert channel.ask_u64(Request.GET_QUEUE_NUM) == QUEUES
    front.features = features & ~UNWANTED
    channel.command(Request.SET_FEATURES, wire.u64(front.features))
    channel.command(Request.SET_MEM_TABLE, front.memory.table(), front.memory.fds)
    for index in range(QUEUES):
        ring = front.add_ring(index)
        channel.command(Request.SET_VRING_NUM, wire.state(index, ring.size))
        channel.command(Request.SET_VRING_ADDR, front.addresses(index))
        channel.command(Request.SET_VRING_BASE, wire.state(index, 0))
        channel.command(Request.SET_VRING_CALL, wire.u64(index), [ring.call_fd])
        channel.command(Request.SET_VRING_KICK, wire.u64(index), [ring.kick_fd])
        channel.command(Request.SET_VRING_ENABLE, wire.state(index, 1))
    works(front)


def test_the_order_of_cloud_hypervisor(server: Server) -> None:
    """An acknowledgement asked for on everything, all sizes first, all enables after all kicks,
    the back-end's channel last."""
    front = server.connect()
    ours, theirs = socket.socketpair()
    server.track(ours)
    server.track(theirs)
    channel = front.channel

    def ask(request: Request, payload: bytes = b"") -> int:
        channel.send(wire.frame(request, payload, Flag.VERSION | Flag.NEED_REPLY))
        return int.from_bytes(channel.answer_to(request), "little")

    assert ask(Request.SET_OWNER) == 0
    features = ask(Request.GET_FEATURES)
    wanted = ask(Request.GET_PROTOCOL_FEATURES) & (
        ProtocolFeature.CONFIG
        | ProtocolFeature.MQ
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
    )
    assert ask(Request.SET_PROTOCOL_FEATURES, wire.u64(wanted)) == 0
    assert ask(Request.GET_QUEUE_NUM) == QUEUES
    front.protocol = wanted
    front.features = features & ~UNWANTED
    front.change(Request.SET_FEATURES, wire.u64(front.features))
    front.share_memory()
    for index in range(QUEUES):
        front.change(Request.SET_VRING_NUM, wire.state(index, front.add_ring(index).size))
    for index, ring in front.rings.items():
        front.change(Request.SET_VRING_ADDR, front.addresses(index))
        front.change(Request.SET_VRING_BASE, wire.state(index, 0))
        front.change(Request.SET_VRING_CALL, wire.u64(index), [ring.call_fd])
        front.change(Request.SET_VRING_KICK, wire.u64(index), [ring.kick_fd])
    for index in front.rings:
        front.enable(index)
    front.change(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    works(front)


def test_the_order_of_qemu_with_memory_slots(server: Server) -> None:
    """The owner after the protocol features, calls and errors before any memory, slots in place of
    a table, the call descriptor replaced after the kick."""
    front = server.connect()
    channel = front.channel
    features = channel.ask_u64(Request.GET_FEATURES)
    offered = channel.ask_u64(Request.GET_PROTOCOL_FEATURES)
    front.protocol = offered & (
        ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.CONFIG
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
    )
    channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(front.protocol))
    assert channel.ask_u64(Request.GET_QUEUE_NUM) == QUEUES
    assert channel.ask_u64(Request.GET_MAX_MEM_SLOTS) == 509
    channel.command(Request.SET_OWNER)
    assert channel.ask_u64(Request.GET_FEATURES) == features
    masked = server.eventfd()
    for index in range(QUEUES):
        channel.command(Request.SET_VRING_CALL, wire.u64(index), [masked])
        ring = front.add_ring(index, 128)
        channel.command(Request.SET_VRING_ERR, wire.u64(index), [ring.error_fd])
    assert len(channel.ask(Request.GET_CONFIG, wire.config(0, 57, bytes(57)))) == 12 + 57
    front.features = features & ~UNWANTED
    front.change(Request.SET_FEATURES, wire.u64(front.features))
    for region in front.memory.regions:
        front.change(Request.ADD_MEM_REG, wire.single_region(region.describe()), [region.fd])
    for index, ring in front.rings.items():
        front.configure_ring(index)
        channel.command(Request.SET_VRING_KICK, wire.u64(index), [ring.kick_fd])
        channel.command(Request.SET_VRING_CALL, wire.u64(index), [masked])
    for index, ring in front.rings.items():
        front.enable(index)
        channel.command(Request.SET_VRING_CALL, wire.u64(index), [ring.call_fd])
    works(front)


def test_rings_run_at_once_when_the_protocol_features_bit_was_not_accepted(
    server: Server,
) -> None:
    front = server.connect().negotiate(never=Feature.PROTOCOL_FEATURES)
    front.share_memory()
    for index in range(QUEUES):
        front.start_ring(index)
    works(front)


@pytest.mark.parametrize("kicked", [True, False])
def test_buffers_made_available_before_the_ring_is_enabled_are_served(
    server: Server, kicked: bool
) -> None:
    """A kick before the enable is not lost, and none is needed."""
    front = server.connect().negotiate().share_memory()
    ring = front.add_ring()
    front.configure_ring()
    front.hand_over_events()
    disk = front.blk()
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    if kicked:
        ring.kick()
    assert front.lives()
    assert ring.used_index == 0
    front.enable()
    ring.wait(1)
    assert disk.result(request).status == 0


def test_a_disabled_ring_takes_nothing_until_it_is_enabled_again(server: Server) -> None:
    front = server.started()
    ring, disk = front.rings[0], front.blk()
    assert disk.read(0, 512).status == 0
    front.enable(0, 0)
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    ring.kick()
    assert front.lives()
    assert ring.used_index == 1
    front.enable(0, 1)
    ring.wait(1)
    assert disk.result(request).status == 0


def test_the_memory_table_may_be_replaced_while_rings_run(server: Server) -> None:
    front = server.started()
    disk = front.blk()
    for turn in range(20):
        disk.submit(disk.prepare(Type.IN, turn, room=512))
        front.rings[0].kick()
        front.share_memory()
        front.rings[0].wait(1)


def test_a_ring_may_be_stopped_and_started_again(server: Server) -> None:
    front = server.started()
    for turn in range(3):
        assert front.blk().read(0, 512).status == 0
        base = front.stop_ring()
        assert base == turn + 1
        front.start_ring(base=base)


def test_a_reset_device_starts_again(server: Server) -> None:
    front = server.started()
    assert front.blk().read(0, 512).status == 0
    front.change(Request.RESET_DEVICE)
    front.rings.pop(0).close()
    front.start_ring()
    assert front.blk().read(0, 512).status == 0


def test_a_machine_that_pauses_as_in_qemu_7_2_goes_on_where_it_was(server: Server) -> None:
    """The status is cleared before the bases are asked for, by when the ring has wrapped."""
    front = server.started()
    ring, disk = front.rings[0], front.blk()
    done = 0
    for _ in range(2):
        for _ in range(ring.size + 7):
            assert disk.read(0, 512).status == 0
            done += 1
        front.change(Request.SET_STATUS, wire.u64(0))
        front.enable(0, 0)
        assert front.stop_ring() == done
        front.change(Request.SET_FEATURES, wire.u64(front.features))
        front.start_ring(base=done)
    assert disk.read(0, 512).status == 0
