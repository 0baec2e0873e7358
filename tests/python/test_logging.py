"""What the core says reaches `logging`, in order and without holding anybody up."""

import contextlib
import logging
import threading
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.process import eventually

from .disks import RamDisk
from .driver import open_driver


def test_the_course_of_a_session_is_logged_in_order(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vhost_user")
    with vu.Backend(RamDisk(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
    said = [r.getMessage().removeprefix(f"{vhost_socket}: ") for r in caplog.records]
    beginnings = [
        "listening on",
        "front-end connected",
        "negotiated features",
        "queue 0 started",
        "queue 0 stopped at 1",
        "front-end disconnected",
        "stopped",
    ]
    assert [next(b for b in beginnings if s.startswith(b)) for s in said] == beginnings
    assert {r.name for r in caplog.records} == {"vhost_user.backend"}
    assert {r.threadName for r in caplog.records} == {"vhost-user-log"}


def test_features_are_logged_by_name(vhost_socket: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "vhost_user")
    with vu.Backend(RamDisk(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.front.stop_ring()
    [said] = [r.getMessage() for r in caplog.records if "negotiated" in r.getMessage()]
    assert "SEG_MAX, BLK_SIZE, " in said
    assert ", VERSION_1)" in said
    assert "bit " not in said


def test_what_was_negotiated_is_said_when_the_first_ring_starts(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """libblkio sets the features before the protocol features. Another ring, and another start with
    the same, are no news."""
    caplog.set_level(logging.DEBUG, "vhost_user")

    def said() -> list[str]:
        texts = [r.getMessage() for r in caplog.records]
        return [
            text.rpartition(", protocol features ")[2] for text in texts if "negotiated" in text
        ]

    with (
        vu.Backend(RamDisk(num_queues=2), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        # Event indices, and the features that need more of the front-end than it says it has.
        never = 1 << 29 | 1 << 33 | 1 << 34 | 1 << 35
        features = front.channel.ask_u64(Request.GET_FEATURES) & ~never
        front.channel.command(Request.SET_FEATURES, wire.u64(features))
        front.channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(0x1))
        front.channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(0x9))
        front.share_memory()
        for _ in range(2):
            front.start_ring(0)
            front.start_ring(1)
            front.stop_ring(0)
            front.stop_ring(1)
        assert eventually(lambda: said() == ["0x9 (MQ, REPLY_ACK)"])
        front.channel.command(Request.SET_PROTOCOL_FEATURES, wire.u64(0x8))
        front.start_ring(0)
        front.stop_ring(0)
    assert eventually(lambda: said() == ["0x9 (MQ, REPLY_ACK)", "0x8 (REPLY_ACK)"])


@pytest.mark.parametrize(
    ("number", "bits", "names"),
    [
        (1, 1 << 0 | 1 << 15 | 1 << 17, "CSUM, MRG_RXBUF, CTRL_VQ"),
        (3, 1 << 0 | 1 << 2, "SIZE, EMERG_WRITE"),
        (8, 1 << 2 | 1 << 20, "CHANGE, bit 20"),
        (42, 1 << 2, "bit 2"),
    ],
)
def test_bits_have_the_names_of_their_device_type(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, number: int, bits: int, names: str
) -> None:
    class Some(vu.Device):
        device_id = number

        def on_queue(self, queue: vu.Queue, /) -> None:
            pass

    caplog.set_level(logging.DEBUG, "vhost_user")
    device = Some(num_queues=2, features=bits)
    with vu.Backend(device, socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.negotiate().share_memory().start_ring()
        front.stop_ring()
    [said] = [r.getMessage() for r in caplog.records if "negotiated" in r.getMessage()]
    assert f"({names}, INDIRECT_DESC, " in said


def test_reports_of_callbacks_stand_where_they_happened(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vhost_user")

    class Bad(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            raise ValueError

    with vu.Backend(Bad(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
        driver.front.stop_ring()
    said = [r.getMessage() for r in caplog.records]
    places = [
        next(i for i, s in enumerate(said) if part in s)
        for part in ("queue 0 started", "read raised ValueError", "queue 0 stopped")
    ]
    assert places == sorted(places)


def test_a_handler_that_blocks_holds_up_neither_requests_nor_messages(vhost_socket: Path) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            blocked.set()
            go_on.wait(20)

    handler = Blocking()
    logger = logging.getLogger("vhost_user")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with vu.Backend(RamDisk(), socket=vhost_socket):
            assert blocked.wait(5)
            for _ in range(5):
                with open_driver(vhost_socket) as driver:
                    driver.read(0, 512)
                    driver.wait()
            go_on.set()
    finally:
        go_on.set()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_what_does_not_fit_is_counted(vhost_socket: Path, caplog: pytest.LogCaptureFixture) -> None:
    """1024 records wait; while the first is handled, more than that come: 100 of two kinds from
    each of six back-ends."""
    caplog.set_level(logging.DEBUG, "vhost_user")
    blocked, go_on = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            blocked.set()
            go_on.wait(20)

    handler = Blocking()
    logger = logging.getLogger("vhost_user")
    logger.addHandler(handler)
    try:
        with contextlib.ExitStack() as stack:
            for number in range(6):
                path = vhost_socket.with_name(f"socket-{number}")
                stack.enter_context(vu.Backend(RamDisk(), socket=path))
                front = stack.enter_context(FrontEnd.connect(str(path)))
                front.negotiate().share_memory()
                for _ in range(100):
                    front.start_ring()
                    front.stop_ring()
            assert blocked.is_set()
            go_on.set()
    finally:
        go_on.set()
        logger.removeHandler(handler)
    dropped = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert dropped
    told = sum("queue 0 st" in r.getMessage() for r in caplog.records)
    assert sum(int(message.split()[0]) for message in dropped) + told >= 1200
