"""Conversations written down by hand from QEMU "Vhost-user Protocol".

A header is request, flags, payload size. A reply carries the same request and flags of exactly
0x5 (version 1, reply): front-ends compare the word for equality.
"""

import pytest
from hostile.server import Server

from .conversation import hold

FEATURES = """
> 01000000 01000000 00000000                     # GET_FEATURES
< 01000000 05000000 08000000 ................    # a u64
> 0f000000 01000000 00000000                     # GET_PROTOCOL_FEATURES
< 0f000000 05000000 08000000 ................
"""

ACKNOWLEDGED = (
    FEATURES
    + """
> 10000000 01000000 08000000 2982000000000000    # SET_PROTOCOL_FEATURES: MQ, REPLY_ACK,
                                                 # BACKEND_REQ, CONFIG, CONFIGURE_MEM_SLOTS
> 03000000 01000000 00000000                     # SET_OWNER
> 02000000 09000000 08000000 0000004001000000    # SET_FEATURES: bits 30 and 32
< 02000000 05000000 08000000 0000000000000000
"""
)

ONE_PAGE = "00000000 00000000 00100000 00000000 00000010 00000000 00000000 00000000"
"""Guest address 0, one page, front-end address 0x10000000, offset 0 in the file."""


def test_features_are_asked_for_and_answered(server: Server) -> None:
    hold(server.channel(), FEATURES)


def test_a_message_that_wants_no_answer_gets_none(server: Server) -> None:
    hold(
        server.channel(),
        """
        > 03000000 01000000 00000000                    # SET_OWNER
        > 02000000 01000000 08000000 0000004001000000   # SET_FEATURES
        > 08000000 01000000 08000000 00000000 40000000  # SET_VRING_NUM: queue 0, 64 entries
        > 0a000000 01000000 08000000 00000000 00000000  # SET_VRING_BASE: queue 0, 0
        """
        + FEATURES,
    )


def test_an_acknowledgement_is_a_number_and_loses_the_need_reply_flag(server: Server) -> None:
    hold(server.channel(), ACKNOWLEDGED)


def test_a_question_with_the_need_reply_flag_is_answered_once(server: Server) -> None:
    """Its own answer counts as the acknowledgement."""
    hold(
        server.channel(),
        ACKNOWLEDGED
        + """
        > 01000000 09000000 00000000                    # GET_FEATURES
        < 01000000 05000000 08000000 ................
        > 11000000 09000000 00000000                    # GET_QUEUE_NUM
        < 11000000 05000000 08000000 0200000000000000
        > 24000000 09000000 00000000                    # GET_MAX_MEM_SLOTS
        < 24000000 05000000 08000000 fd01000000000000   # 509
        > 0b000000 09000000 08000000 01000000 00000000  # GET_VRING_BASE: queue 1
        < 0b000000 05000000 08000000 01000000 00000000
        """,
    )


def test_the_acknowledgement_of_the_message_that_negotiates_it_is_sent(server: Server) -> None:
    """rust-vmm's front-end sets the flag already there."""
    hold(
        server.channel(),
        FEATURES
        + """
        > 10000000 09000000 08000000 0800000000000000   # SET_PROTOCOL_FEATURES: REPLY_ACK
        < 10000000 05000000 08000000 0000000000000000
        """,
    )


def test_a_refused_message_is_acknowledged_with_another_number_than_zero(server: Server) -> None:
    hold(
        server.channel(),
        ACKNOWLEDGED
        + """
        > 08000000 09000000 08000000 00000000 03000000  # SET_VRING_NUM: 3 is no power of two
        < 08000000 05000000 08000000 0100000000000000
        > 08000000 09000000 08000000 00000000 40000000  # SET_VRING_NUM: 64
        < 08000000 05000000 08000000 0000000000000000
        """,
    )


def test_the_configuration_is_answered_with_its_own_header(server: Server) -> None:
    """Offset, size, flags, bytes. The disk has 2,048 sectors."""
    hold(
        server.channel(),
        ACKNOWLEDGED
        + """
        > 18000000 01000000 14000000 00000000 08000000 00000000 0000000000000000  # GET_CONFIG
        < 18000000 05000000 14000000 00000000 08000000 00000000 0008000000000000
        > 18000000 01000000 0e000000 22000000 02000000 00000000 0000              # num_queues
        < 18000000 05000000 0e000000 22000000 02000000 00000000 0200
        """,
    )


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(f"05000000 09000000 28000000 01000000 00000000 {ONE_PAGE}", id="table"),
        pytest.param(f"25000000 09000000 28000000 0000000000000000 {ONE_PAGE}", id="slot"),
    ],
)
def test_memory_is_mapped_with_its_descriptor(server: Server, message: str) -> None:
    hold(
        server.channel(),
        ACKNOWLEDGED
        + f"""
        > {message} @memory
        < {message[:8]} 05000000 08000000 0000000000000000
        """,
        {"memory": server.memfd()},
    )


RING = """
> 08000000 09000000 08000000 00000000 04000000   # SET_VRING_NUM: queue 0, 4 entries
< 08000000 05000000 08000000 0000000000000000
> 0a000000 09000000 08000000 00000000 00000000   # SET_VRING_BASE: queue 0, 0
< 0a000000 05000000 08000000 0000000000000000
> 09000000 09000000 28000000 00000000 00000000 \
  0000001000000000 0001001000000000 8000001000000000 0000000000000000 # SET_VRING_ADDR: descriptors,
                                                 # used, available, log
< 09000000 05000000 08000000 0000000000000000
> 0e000000 09000000 08000000 0000000000000000 @error  # SET_VRING_ERR
< 0e000000 05000000 08000000 0000000000000000
> 0d000000 09000000 08000000 0000000000000000 @call   # SET_VRING_CALL
< 0d000000 05000000 08000000 0000000000000000
> 0c000000 09000000 08000000 0000000000000000 @kick   # SET_VRING_KICK
< 0c000000 05000000 08000000 0000000000000000
> 12000000 09000000 08000000 00000000 01000000   # SET_VRING_ENABLE
< 12000000 05000000 08000000 0000000000000000
"""


def test_a_ring_is_set_up_and_its_base_read_back(server: Server) -> None:
    descriptors = {name: server.eventfd() for name in ("error", "call", "kick")}
    hold(
        server.channel(),
        ACKNOWLEDGED
        + f"""
        > 05000000 09000000 28000000 01000000 00000000 {ONE_PAGE} @memory
        < 05000000 05000000 08000000 0000000000000000
        """
        + RING
        + """
        > 0b000000 01000000 08000000 00000000 00000000  # GET_VRING_BASE
        < 0b000000 05000000 08000000 00000000 00000000
        > 22000000 09000000 00000000                    # RESET_DEVICE: not negotiated here
        < 22000000 05000000 08000000 0100000000000000
        """,
        descriptors | {"memory": server.memfd()},
    )


def test_no_descriptor_is_said_in_the_ninth_bit(server: Server) -> None:
    hold(
        server.channel(),
        ACKNOWLEDGED
        + """
        > 0d000000 09000000 08000000 0101000000000000   # SET_VRING_CALL: queue 1, none
        < 0d000000 05000000 08000000 0000000000000000
        > 0e000000 09000000 08000000 0001000000000000   # SET_VRING_ERR: queue 0, none
        < 0e000000 05000000 08000000 0000000000000000
        """,
    )
