"""A whole set-up as a list of frames, from the first message to a running ring."""

from typing import NamedTuple

from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Feature, Flag, Request

from .server import Server

ASK = Flag.VERSION | Flag.NEED_REPLY


class Step(NamedTuple):
    """One frame, its descriptors, and how many bytes answer it."""

    data: bytes
    fds: tuple[int, ...] = ()
    answer: int = 0


def handshake(server: Server) -> tuple[FrontEnd, list[Step]]:
    """The steps to a running ring 0, and a front-end (not negotiated) with that ring's memory."""
    with FrontEnd.connect(server.path()).negotiate() as first:
        features = first.features
        protocol = first.protocol
    front = server.connect()
    front.offered = front.features = features
    front.protocol = protocol
    ring = front.add_ring()
    index = wire.u64(0)
    return front, [
        Step(wire.frame(Request.SET_OWNER)),
        Step(wire.frame(Request.GET_FEATURES), answer=20),
        Step(wire.frame(Request.GET_PROTOCOL_FEATURES), answer=20),
        Step(wire.frame(Request.SET_PROTOCOL_FEATURES, wire.u64(protocol))),
        Step(wire.frame(Request.SET_FEATURES, wire.u64(features | Feature.PROTOCOL_FEATURES))),
        Step(
            wire.frame(Request.SET_MEM_TABLE, front.memory.table(), ASK),
            tuple(front.memory.fds),
            answer=20,
        ),
        Step(wire.frame(Request.SET_VRING_NUM, wire.state(0, ring.size))),
        Step(wire.frame(Request.SET_VRING_BASE, wire.state(0, 0))),
        Step(wire.frame(Request.SET_VRING_ADDR, front.addresses())),
        Step(wire.frame(Request.SET_VRING_ERR, index), (ring.error_fd,)),
        Step(wire.frame(Request.SET_VRING_CALL, index), (ring.call_fd,)),
        Step(wire.frame(Request.SET_VRING_KICK, index, ASK), (ring.kick_fd,), answer=20),
        Step(wire.frame(Request.SET_VRING_ENABLE, wire.state(0, 1), ASK), answer=20),
    ]
