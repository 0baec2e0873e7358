"""``vhost-user top``: what a server does between two looks."""

import contextlib
import json
import os
import pty
import sys

import pytest
import vhost_user as vu
from peer.blk import SECTOR, Status
from peer.front_end import FrontEnd
from vhost_user.cli import exposition
from vhost_user.cli.top import Seen, Watched, cells, compare, drawn, duration

from .command import Server, run


class Null(vu.BlockDevice):
    """A disk of zeroes."""

    def __init__(self) -> None:
        super().__init__(size=1 << 20, read_only=True, num_queues=2)

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = bytes(len(buf))


FIRST = """\
# HELP vhost_user_inflight Requests.
vhost_user_inflight{device="a\\"b",queue="0"} 1
vhost_user_requests_total{device="a\\"b",queue="0",op="read",status="ok"} 100
vhost_user_request_seconds_bucket{queue="0",op="read",le="0.001"} 50
vhost_user_request_seconds_bucket{queue="0",op="read",le="0.002"} 100
vhost_user_request_seconds_bucket{queue="0",op="read",le="+Inf"} 100
"""

SECOND = """\
vhost_user_inflight{device="a\\"b",queue="0"} 3
vhost_user_oldest_inflight_seconds{queue="0"} 0.25
vhost_user_requests_total{device="a\\"b",queue="0",op="read",status="ok"} 300
vhost_user_requests_total{device="a\\"b",queue="0",op="read",status="error"} 4
vhost_user_bytes_total{queue="0",op="read"} 2048
vhost_user_batch_size_sum{queue="0"} 30
vhost_user_batch_size_count{queue="0"} 10
vhost_user_stage_seconds_sum{queue="0",stage="gil_wait"} 0.25
vhost_user_stage_seconds_sum{queue="0",stage="callback"} 0.75
vhost_user_request_seconds_bucket{queue="0",op="read",le="0.001"} 50
vhost_user_request_seconds_bucket{queue="0",op="read",le="0.002"} 200
vhost_user_request_seconds_bucket{queue="0",op="read",le="+Inf"} 200
"""


def test_a_queue_is_told_by_what_came_between_two_looks() -> None:
    (queue,) = compare(Seen(10.0, FIRST), Seen(12.0, SECOND))
    assert queue == {
        "queue": 0,
        "requests": 304,
        "iops": 102.0,
        "bytes": 1024.0,
        "p50": pytest.approx(0.0015),
        "p99": pytest.approx(0.00199),
        "gil_wait": 0.25,
        "batch": 3.0,
        "in_flight": 3,
        "oldest": 0.25,
        "errors": 2.0,
    }
    told = ["0", "102", "1 KiB", "1.5 ms", "1.99 ms", "25%", "3.0", "3", "250 ms", "2"]
    assert cells(queue) == told


def test_what_is_not_known_is_a_dash() -> None:
    (queue,) = compare(Seen(1.0, FIRST), Seen(2.0, FIRST))
    assert (queue["p50"], queue["gil_wait"], queue["batch"]) == (None, None, None)
    assert cells(queue)[3:7] == ["-", "-", "-", "-"]


def test_durations_have_a_unit_that_fits() -> None:
    seconds = [2.5, 0.0125, 3.2e-5, 4e-7, None]
    assert [duration(s) for s in seconds] == ["2.5 s", "12.5 ms", "32 us", "400 ns", "-"]


def test_values_past_the_last_bound_are_told_as_that() -> None:
    assert exposition.quantile([(1.0, 0.0), (float("inf"), 5.0)], 0.5) == 1.0
    assert exposition.quantile([], 0.5) is None


def test_a_server_is_looked_at(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock", "--control", "c.sock"]
    with Server(*words) as server, FrontEnd.connect("ram.sock").start() as front:
        assert front.blk().read(0, SECTOR).status == Status.OK
        result = run("top", "c.sock", "--interval", "0.1", "--count", "2")
        assert (result.status, result.err) == (0, "")
        lines = result.out.splitlines()
        assert lines[0] == f"Ram: running, process {server.process.pid}"
        assert lines[1].split()[:2] == ["queue", "IOPS"]
        assert (lines[2].split()[0], lines[3]) == ("0", "")
        assert result.out.count("running") == 2
        result = run("top", "c.sock", "--interval", "0.1", "--count", "1", "--json")
        found = json.loads(result.out)
        assert [queue["queue"] for queue in found["queues"]] == list(range(16))


def test_a_server_that_ends_is_waited_for_and_the_next_one_is_watched(ram: str) -> None:
    first = vu.Backend(Null(), socket="first.sock", control="c.sock").start()
    with Watched("c.sock", 5.0) as watched:
        title, queues = watched.look()
        assert title == f"Null: listening, process {os.getpid()}"
        assert [queue["iops"] for queue in queues] == [0.0, 0.0]
        first.stop()
        assert [watched.look()[1] for _ in range(2)] == [[], []]
        assert "was a server started with --control there?" in watched.look()[0]
        with vu.Backend(Null(), socket="next.sock", control="c.sock"):
            assert watched.look() == (title, [])
            title, queues = watched.look()
            assert [queue["iops"] for queue in queues] == [0.0, 0.0]


def drain(screen: int) -> str:
    """All that was shown on a terminal that is closed by now."""
    seen = b""
    with open(screen, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while piece := file.read(65536):
            seen += piece
    return seen.decode()


QUEUE = compare(Seen(10.0, FIRST), Seen(12.0, SECOND))


@pytest.mark.parametrize("has_rich", [True, False])
def test_on_a_terminal_the_table_is_drawn_in_place(
    monkeypatch: pytest.MonkeyPatch, has_rich: bool
) -> None:
    screen, other = pty.openpty()
    with open(other, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        if not has_rich:
            monkeypatch.setitem(sys.modules, "vhost_user.cli.top_rich", None)
        with drawn(in_json=False) as show:
            show("Ram: running", QUEUE)
            show("Ram: paused", QUEUE)
    seen = drain(screen)
    assert "Ram: running" in seen
    assert "\x1b[" in seen[seen.index("Ram: running") : seen.index("Ram: paused")]
    assert "1.99 ms" in seen[seen.index("Ram: paused") :]
    assert ("─" in seen) is has_rich


def test_without_a_server_it_says_so() -> None:
    result = run("top", "c.sock")
    assert result.status == 5
    assert "--control" in result.err
