"""The example that reads a disk over HTTP, against a server on this machine."""

import random
import threading
from pathlib import Path

import pytest
from peer.blk import SECTOR, Status, Type
from peer.front_end import FrontEnd

from . import web
from .command import Server, run

EXAMPLE = str(Path(__file__).parents[2] / "examples/http_disk.py")
CONTENT = random.Random(1).randbytes(100 * SECTOR + 300)
LIMIT = 20.0
"""Seconds for something to happen."""


def words(url: str, *more: str) -> list[str]:
    return ["run", EXAMPLE, f"url={url}", *more, "--socket-path", "h.sock"]


def read_together(peer: FrontEnd, count: int) -> None:
    """Reads the first sectors, all requests in flight at a time."""
    disk = peer.blk()
    requests = [disk.prepare(Type.IN, number, room=SECTOR) for number in range(count)]
    for request in requests:
        disk.submit(request)
    peer.rings[0].kick()
    assert len(peer.rings[0].wait(count, LIMIT)) == count
    for number, request in enumerate(requests):
        result = disk.result(request)
        here = CONTENT[number * SECTOR : (number + 1) * SECTOR]
        assert (result.status, result.data) == (Status.OK, here)


def test_the_disk_has_what_the_server_has() -> None:
    file = web.File(CONTENT)
    with web.serving(file.answer) as site, Server(*words(site.url)) as server:
        assert server.first_line == "listening on h.sock  blk 50 KiB 16 queues"
        with FrontEnd.connect("h.sock").start() as peer:
            disk = peer.blk()
            assert disk.read(0, 100 * SECTOR).data == CONTENT[: 100 * SECTOR]
            assert disk.read(7, 3 * SECTOR).data == CONTENT[7 * SECTOR : 10 * SECTOR]
            assert disk.read(99, SECTOR).data == CONTENT[99 * SECTOR : 100 * SECTOR]
            # No part of the file that is no whole sector, and no write.
            assert disk.read(100, SECTOR).status == Status.IOERR
            assert disk.write(0, bytes(SECTOR)).status == Status.IOERR
        assert server.end().status == 0
    assert file.asked == [(0, 1), (0, 51200), (7 * SECTOR, 3 * SECTOR), (99 * SECTOR, SECTOR)]


def test_many_requests_are_under_way_at_a_time_over_connections_that_stay() -> None:
    file, together = web.File(CONTENT), threading.Barrier(8, timeout=LIMIT)

    def answer(headers: dict[str, str]) -> web.Answer:
        if "If-Range" in headers:
            together.wait()  # Nobody is answered before eight have asked.
        return file.answer(headers)

    with web.serving(answer) as site, Server(*words(site.url, "threads=8")) as server:
        with FrontEnd.connect("h.sock").start() as peer:
            for _ in range(3):
                read_together(peer, 8)
        assert server.end() == (0, "", "")
        assert site.connections <= 9


def test_a_file_that_is_replaced_is_an_error_and_not_mixed() -> None:
    file = web.File(CONTENT)
    with web.serving(file.answer) as site, Server(*words(site.url)) as server:
        with FrontEnd.connect("h.sock").start() as peer:
            assert peer.blk().read(0, SECTOR).data == CONTENT[:SECTOR]
            file.content, file.tag = bytes(len(CONTENT)), '"2"'
            assert peer.blk().read(0, SECTOR).status == Status.IOERR
            file.content, file.tag = CONTENT, '"1"'
            assert peer.blk().read(1, SECTOR).data == CONTENT[SECTOR : 2 * SECTOR]
        assert server.end().status == 0


@pytest.mark.parametrize(
    "wrong",
    [
        (404, {}, b""),
        (200, {}, CONTENT[:SECTOR]),
        (206, {}, CONTENT[: SECTOR - 1]),
        (206, {}, CONTENT[: SECTOR + 1]),
        (206, {}, b""),
    ],
    ids=["missing", "whole", "short", "long", "empty"],
)
def test_an_answer_that_is_not_what_was_asked_for_fails_its_request_alone(
    wrong: web.Answer,
) -> None:
    file, is_wrong = web.File(CONTENT), threading.Event()

    def answer(headers: dict[str, str]) -> web.Answer:
        return wrong if is_wrong.is_set() else file.answer(headers)

    with web.serving(answer) as site, Server(*words(site.url)) as server:
        with FrontEnd.connect("h.sock").start() as peer:
            is_wrong.set()
            assert peer.blk().read(0, SECTOR).status == Status.IOERR
            is_wrong.clear()
            assert peer.blk().read(0, SECTOR).data == CONTENT[:SECTOR]
        assert server.end().status == 0


def test_connections_that_the_server_has_closed_are_made_anew() -> None:
    file, together = web.File(CONTENT), threading.Barrier(4, timeout=LIMIT)

    def answer(headers: dict[str, str]) -> web.Answer:
        if "If-Range" in headers:
            together.wait()
        return file.answer(headers)

    with web.serving(answer) as site, Server(*words(site.url, "threads=4")) as server:
        site.hangs_up = True
        with FrontEnd.connect("h.sock").start() as peer:
            # From the second time on all four have a closed connection at hand.
            for _ in range(3):
                read_together(peer, 4)
        assert server.end() == (0, "", "")
        assert site.connections == 1 + 3 * 4


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ((200, {}, CONTENT), "asked for a part, the server answers 200"),
        ((404, {}, b""), "asked for a part, the server answers 404"),
        ((302, {"Location": "/other"}, b""), "asked for a part, the server answers 302"),
    ],
)
def test_a_server_that_cannot_serve_a_disk_is_an_error_at_the_start(
    wrong: web.Answer, problem: str
) -> None:
    with web.serving(lambda _headers: wrong) as site:
        result = run(*words(site.url))
    assert result.status == 1
    assert problem in result.err
    assert result.err.count("\n") == 1


def test_addresses_of_other_kinds_are_refused() -> None:
    result = run(*words("ftp://127.0.0.1/x"))
    assert result.status == 1
    assert "url is http://... or https://..., not 'ftp://127.0.0.1/x'" in result.err
