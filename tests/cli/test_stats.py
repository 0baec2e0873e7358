"""What a server tells of its work, a line for each interval."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.process import eventually
from vhost_user import QueueStats
from vhost_user.cli.stats import describe, difference, reported

from .command import Server, run

SECTOR = 512
IDLE = QueueStats(0, 0, 0, 0, 0, 0)
SOME = QueueStats(requests=30, bytes=3 << 20, errors=1, kicks=4, calls=5, in_flight=2)


def test_a_line_has_the_difference_of_all_queues_with_its_units() -> None:
    later = QueueStats(requests=130, bytes=5 << 20, errors=1, kicks=5, calls=7, in_flight=3)
    said = "stats: 2.0 s: 100 requests (50/s), 2 MiB (1 MiB/s), 0 errors, 1 kicks, 2 calls"
    assert describe(difference([SOME], [later]), 2.0) == f"{said}, 3 in flight"
    said = "stats: 0.5 s: 160 requests (320/s), 8 MiB (16 MiB/s), 2 errors, 9 kicks, 12 calls"
    both = difference([IDLE, IDLE], [SOME, later])
    assert describe(both, 0.5) == f"{said}, 5 in flight"


def test_nothing_is_said_of_an_interval_in_which_nothing_happened() -> None:
    quiet = SOME._replace(in_flight=0)
    assert not any(difference([quiet, IDLE], [quiet, IDLE]).values())
    for name in ("requests", "errors", "kicks", "calls", "in_flight"):
        some = quiet._replace(**{name: getattr(quiet, name) + 1})
        assert any(difference([quiet], [some]).values()), name
    # What hangs is worth a line, though nothing moves.
    assert any(difference([SOME], [SOME]).values())


def requests(text: str) -> list[int]:
    """How many requests each line tells of."""
    return [int(number) for number in re.findall(r"^stats: \S+ s: (\d+) requests", text, re.M)]


def test_a_server_tells_what_it_has_done_and_at_the_end_what_is_left(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock", "--stats"]
    for seconds in ("0.1", "3600"):
        with Server(*words, seconds) as server:
            with FrontEnd.connect("ram.sock").start() as peer:
                for _ in range(5):
                    assert peer.blk().read(0, SECTOR).status == Status.OK
                assert peer.blk().read(1 << 20, SECTOR).status == Status.IOERR
            result = server.end()
        assert (result.status, result.out) == (0, "")
        assert sum(requests(result.err)) == 6
        assert sum(map(int, re.findall(r"(\d+) errors", result.err))) == 1
        if seconds == "3600":
            assert result.err.count("stats: ") == 1
            assert "6 requests" in result.err
            assert "2.5 KiB" in result.err


def test_a_server_that_was_not_asked_tells_nothing(ram: str) -> None:
    with Server("run", ram, "size=64K", "--socket-path", "ram.sock") as server:
        with FrontEnd.connect("ram.sock").start() as peer:
            assert peer.blk().read(0, SECTOR).status == Status.OK
        assert server.end().err == ""


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "soon", "0.01", "inf"])
def test_an_interval_that_cannot_be_is_an_error(image: str, wrong: str) -> None:
    result = run("blk", "--blk-file", image, "--socket-path", "x", "--stats", wrong)
    assert result.status == 2
    assert f"'{wrong}' is not a number of seconds from 0.1 to 86400" in result.err


class Counts:
    """Numbers that a test sets; it tells how often it was asked."""

    def __init__(self) -> None:
        self.now = IDLE
        self.asked = 0

    def __call__(self) -> list[QueueStats]:
        self.asked += 1
        return [self.now]

    def is_asked_again(self) -> bool:
        before = self.asked
        return eventually(lambda: self.asked >= before + 3)


@contextmanager
def standard_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pipe as standard error; the end to read from."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        yield reader
    os.close(reader)


def test_what_was_done_before_the_first_interval_began_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = Counts()
    counts.now = SOME
    with standard_error(monkeypatch) as reader:
        with reported(counts, 3600):
            pass
        assert requests(os.read(reader, 4096).decode()) == [30]


def test_an_idle_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    with standard_error(monkeypatch) as reader:
        with reported(counts, 0.01):
            assert counts.is_asked_again()
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)


def test_a_reader_that_stalls_holds_nothing_up_and_misses_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = Counts()
    with standard_error(monkeypatch) as reader:
        os.set_blocking(reader, True)
        filled = fill(reader)
        with reported(counts, 0.01):
            counts.now = SOME._replace(in_flight=0)
            assert counts.is_asked_again()
            empty(reader, filled)
            said = os.read(reader, 4096).decode()
        assert requests(said) == [30]


def fill(reader: int) -> int:
    """Fills the pipe that has this end; how many bytes that takes."""
    writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_NONBLOCK)
    total = 0
    try:
        while True:
            total += os.write(writer, bytes(4096))
    except BlockingIOError:
        return total
    finally:
        os.close(writer)


def empty(reader: int, count: int) -> None:
    """Reads so many bytes."""
    while count:
        count -= len(os.read(reader, count))


def test_where_there_is_no_standard_error_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        counts = Counts()
        with reported(counts, 0.01):
            counts.now = SOME
            assert counts.is_asked_again()
