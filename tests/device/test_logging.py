"""Records from the core and from callbacks: none deadlocks, none overtakes another."""

import logging
import re
import threading
from collections.abc import Iterator

import pytest
from peer import wire
from peer.blk import Status, Type
from peer.numbers import Request
from peer.process import eventually

from .conftest import Bench, RamDisk


class Recorder(logging.Handler):
    """Keeps the text of each record, with the name of its logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append((record.name, record.getMessage()))

    def having(self, word: str) -> list[str]:
        """The texts in which a word stands."""
        return [text for _, text in self.texts if word in text]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    logger = logging.getLogger("vhost_user")
    recorder, level = Recorder(), logger.level
    logger.addHandler(recorder)
    logger.setLevel(logging.DEBUG)
    yield recorder
    logger.removeHandler(recorder)
    logger.setLevel(level)


class TalkativeDisk(RamDisk):
    """Logs each read, to the package's own logger."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        logging.getLogger("vhost_user.disk").info("read at %d", offset)
        super().read(offset, buf)


def test_records_of_callbacks_and_of_the_core_both_arrive(bench: Bench, recorder: Recorder) -> None:
    front = bench.drive(TalkativeDisk())
    for sector in range(50):
        assert front.blk().read(sector, 512).status == Status.OK
    assert front.is_refused(Request.SET_VRING_NUM, wire.state(0, 3))
    front.channel.close()
    assert eventually(lambda: bool(recorder.having("SET_VRING_NUM")))
    mine = recorder.having("read at")
    assert mine == [f"read at {sector * 512}" for sector in range(50)]


def test_records_of_the_core_keep_their_order(bench: Bench, recorder: Recorder) -> None:
    """Refusals of ninety different ring sizes, none of them a power of two."""
    bench.serve(RamDisk())
    front = bench.connect().negotiate()
    sizes = [5 + 2 * n for n in range(90)]
    for size in sizes:
        assert front.is_refused(Request.SET_VRING_NUM, wire.state(0, size))
    assert eventually(lambda: len(recorder.having("SET_VRING_NUM")) == len(sizes))
    for size, text in zip(sizes, recorder.having("SET_VRING_NUM"), strict=True):
        assert re.search(rf"\b{size}\b", text)


def test_a_handler_that_is_locked_holds_nothing_up(bench: Bench, recorder: Recorder) -> None:
    """The test holds the handler's lock while the core has much to say, and while it stops."""
    front = bench.drive(RamDisk())
    recorder.acquire()
    try:
        for size in range(100):
            assert front.is_refused(Request.SET_VRING_NUM, wire.state(0, 2 * size + 5))
        assert front.blk().read(0, 512).status == Status.OK
        bench.check_witness()
        bench.backend.stop(drain=0.5)
        assert bench.backend.state == "stopped"
    finally:
        recorder.release()
    assert eventually(lambda: bool(recorder.having("SET_VRING_NUM")))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handler_that_raises_harms_nobody(
    bench: Bench, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def fail(_: logging.LogRecord) -> None:
        raise RuntimeError("this handler is broken")

    monkeypatch.setattr(recorder, "emit", fail)
    front = bench.drive(RamDisk())
    assert front.is_refused(Request.SET_VRING_NUM, wire.state(0, 3))
    assert front.blk().read(0, 512).status == Status.OK


def test_a_handler_that_uses_the_back_end_does_not_deadlock(
    bench: Bench, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for the state from within a handler is what a status page would do."""
    states: list[str] = []
    asked = threading.Event()

    def ask(_: logging.LogRecord) -> None:
        states.append(bench.backend.state)
        asked.set()

    front = bench.drive(RamDisk())
    monkeypatch.setattr(recorder, "emit", ask)
    assert front.is_refused(Request.SET_VRING_NUM, wire.state(0, 3))
    assert asked.wait(5)
    assert front.blk().read(0, 512).status == Status.OK
    assert states


def test_logging_from_many_queues_at_once_does_not_deadlock(
    bench: Bench, recorder: Recorder
) -> None:
    class ParallelDisk(TalkativeDisk):
        thread_safe = True

    front = bench.drive(ParallelDisk(num_queues=4), queues=4)
    for _ in range(10):
        for index in range(4):
            for sector in range(16):
                front.blk(index).submit(front.blk(index).prepare(Type.IN, sector, room=512))
            front.rings[index].kick()
        logging.getLogger("vhost_user").info("main thread")
        for index in range(4):
            front.rings[index].wait(16)
    assert len(recorder.having("read at")) == 10 * 4 * 16
