"""`--log-format`: how the lines on standard error are written."""

import json
import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from peer.blk import Status
from peer.front_end import FrontEnd
from vhost_user.cli import lines

from .command import Server, run

BROKEN = """
import vhost_user as vu


class Broken(vu.BlockDevice):
    def __init__(self) -> None:
        super().__init__(size=65536, read_only=True)

    def read(self, offset, buf):
        raise ValueError("broken \\udcff\\n on purpose")
"""


def served(form: str, *more: str) -> tuple[int, list[str]]:
    """The lines of a server whose device raises, from the first to the last."""
    Path("broken.py").write_text(BROKEN)
    words = ["run", "broken.py", "--socket-path", "d.sock", "--log-format", form, *more]
    with Server(*words) as server:
        with FrontEnd.connect("d.sock").start() as peer:
            assert peer.blk().read(0, 512).status == Status.IOERR
        result = server.end()
    assert (result.status, result.out) == (0, "")
    return server.process.pid, [server.first_line, *result.err.splitlines()]


def objects(said: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said]


def test_each_line_is_one_object_with_the_documented_fields() -> None:
    before = datetime.now(UTC)
    pid, said = served("json", "-v", "--stats", "3600")
    found = objects(said)
    for each in found:
        assert each.pop("pid") == pid
        assert before <= datetime.fromisoformat(each.pop("time")) <= datetime.now(UTC)
    assert {
        "level": "info",
        "logger": "vhost_user.cli",
        "message": "listening on d.sock  blk 64 KiB 16 queues",
    } in found
    records = [each for each in found if each["logger"] != "vhost_user.cli"]
    raised = next(each for each in records if "exception" in each)
    assert (raised["level"], raised["logger"]) == ("error", "vhost_user.device")
    assert raised["thread"]
    assert raised["exception"].startswith("Traceback (most recent call last):\n")
    assert raised["exception"].endswith("ValueError: broken \udcff\n on purpose")
    assert any(each["level"] == "info" and "front-end" in each["message"] for each in records)
    numbers = next(each["stats"] for each in records if each["logger"] == "vhost_user.stats")
    assert numbers.pop("seconds") > 0
    assert numbers.pop("kicks") >= 1
    assert numbers.pop("calls") >= 0
    assert numbers == {"requests": 1, "bytes": 0, "errors": 1, "in_flight": 0}


def test_every_line_for_the_journal_has_a_priority() -> None:
    _, said = served("journal")
    assert said[0] == "<6>listening on d.sock  blk 64 KiB 16 queues"
    assert len(said) > 4
    assert all(line.startswith("<3>") for line in said[1:])
    assert said[2] == "<3>Traceback (most recent call last):"


def test_text_is_what_it_was() -> None:
    _, said = served("text")
    assert said[0] == "listening on d.sock  blk 64 KiB 16 queues"
    assert said[1].startswith("error: ")


def test_what_keeps_a_server_from_its_start_is_an_object_too() -> None:
    words = ["blk", "absent.img", "--socket-path", "d.sock", "--log-format", "json"]
    result = run(*words)
    assert (result.status, result.out) == (1, "")
    (line,) = objects(result.err.splitlines())
    assert line["level"] == "error"
    assert line["message"].startswith("vhost-user: ")
    assert "absent.img" in line["message"]


def test_a_keeper_and_its_back_end_write_objects(image: str) -> None:
    words = ["blk", image, "--socket-path", "d.sock", "--hold", "--log-format", "json"]
    with Server(*words) as server:
        start = json.loads(server.first_line)
        assert (start["level"], start["pid"]) == ("info", server.process.pid)
        child = re.search(r"held for process (\d+)", start["message"])
        assert child is not None
        os.kill(int(child[1]), signal.SIGKILL)
        assert server.process.stderr is not None
        died = json.loads(server.process.stderr.readline())
        assert (died["level"], died["logger"]) == ("warning", "vhost_user.cli")
        assert died["message"].startswith(f"vhost-user: process {child[1]} was ended by SIGKILL")
        result = server.end()
    assert all(isinstance(each, dict) for each in objects(result.err.splitlines()))


def test_a_form_that_there_is_not_is_refused() -> None:
    result = run("blk", "x.img", "--socket-path", "d.sock", "--log-format", "xml")
    assert result.status == 2
    assert "argument --log-format: invalid choice: 'xml'" in result.err


@pytest.mark.parametrize(
    ("at", "text"),
    [(0.0, "1970-01-01T00:00:00.000000Z"), (1e9 + 0.999999, "2001-09-09T01:46:40.999999Z")],
)
def test_times_are_utc_to_the_microsecond(
    monkeypatch: pytest.MonkeyPatch, at: float, text: str
) -> None:
    monkeypatch.setattr(lines, "_format", "json")
    assert json.loads(lines.line("x", at=at))["time"] == text
