"""Orders for a running server: what they do, and what is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.blk import SECTOR, Status
from peer.front_end import FrontEnd
from peer.process import eventually
from python.disks import Keeping
from vhost_user.cli.ctl import configure, order
from vhost_user.cli.exits import Exit, Failure
from vhost_user.cli.parser import Parser

from .command import Result, Server, run

CONTROL = "control.sock"


@pytest.fixture
def server(ram: str) -> Iterator[Server]:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock", "--control", CONTROL]
    with Server(*words) as server:
        yield server


def ctl(*words: str) -> Result:
    return run("ctl", CONTROL, *words)


def dump() -> Any:
    result = ctl("dump")
    assert (result.status, result.err) == (0, "")
    return json.loads(result.out)


def test_a_dump_has_the_device_its_state_and_what_it_has_done(server: Server) -> None:
    with FrontEnd.connect("ram.sock").start() as front:
        assert front.blk().read(0, SECTOR).status == Status.OK
        found = dump()
    assert found["state"] == "running"
    assert (found["paused"], found["pid"]) == (False, server.process.pid)
    assert found["device"]["class"] == "Ram"
    assert (found["device"]["size"], found["device"]["num_queues"]) == (65536, 16)
    assert (found["queues"][0]["requests"], found["queues"][0]["bytes"]) == (1, SECTOR)


def test_a_server_is_paused_and_goes_on(server: Server) -> None:
    with FrontEnd.connect("ram.sock").start() as front:
        assert front.blk().read(0, SECTOR).status == Status.OK
        assert ctl("pause") == Result(0, "paused\n", "")
        assert dump()["paused"] is True
        disk = front.blk()
        disk.submit(disk.prepare(1, 0, data=bytes(SECTOR)))
        disk.ring.kick()
        assert dump()["queues"][0]["requests"] == 1
        assert ctl("resume") == Result(0, "running\n", "")
        assert eventually(lambda: dump()["queues"][0]["requests"] == 2)


def test_a_disk_is_resized_and_its_guest_reads_the_new_end(server: Server) -> None:
    with FrontEnd.connect("ram.sock").start() as front:
        assert front.blk().read(128, SECTOR).status == Status.IOERR
        assert ctl("resize", "96K").out == "size: 98304 bytes (96 KiB)\n"
        assert dump()["device"]["size"] == 98304
        result = ctl("resize", "1000")
        assert (result.status, result.out) == (1, "")
        assert "1000" in result.err


def test_a_server_drains_and_ends_well(server: Server) -> None:
    assert ctl("drain").out == "ending: 0 in flight\n"
    assert server.wait().status == 0
    assert not os.path.exists(CONTROL)


def test_the_log_tells_more_once_it_is_told_to(server: Server) -> None:
    assert ctl("log-level", "info").out == "log level: info\n"
    with FrontEnd.connect("ram.sock").start():
        pass
    assert "connected" in server.end().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resize"], "resize needs a value: its size"),
        (["resize", "big"], "'big' is not a number or a size such as 64M or 1GiB"),
        (["pause", "now"], "pause takes no value, and was given now"),
        (["drain", "86401"], "'86401' is not a number of seconds from 0 to 86400"),
        (["log-level"], "log-level needs a value: its level"),
        (["log-level", "loud"], "'loud' is none of debug, info, warning, error"),
        (["stop"], "invalid choice: 'stop'"),
        ([], "CONTROL, ORDER"),
    ],
)
def test_a_wrong_order_is_a_usage_error(words: list[str], said: str) -> None:
    parser = Parser("ctl", "x")
    configure(parser)
    with pytest.raises(Failure) as caught:
        order(parser.parse([CONTROL, *words] if words else []))
    assert caught.value.status == Exit.USAGE
    assert said in str(caught.value)


def test_where_no_server_listens_the_command_says_so(directory: Path) -> None:
    result = ctl("dump")
    assert result.status == 5
    assert "was a server started with --control there?" in result.err


def test_what_is_no_control_socket_ends_the_command(ram: str) -> None:
    with Server("run", ram, "size=64K", "--socket-path", CONTROL):
        result = ctl("dump", "--timeout", "0.5")
        assert result.status in (3, 5)
        assert result.err.count("\n") == 1


def test_a_pause_waits_for_what_is_in_flight_and_says_if_it_is_not_back(directory: Path) -> None:
    disk = Keeping()
    with (
        vu.Backend(disk, socket="ram.sock", control=CONTROL) as backend,
        FrontEnd.connect("ram.sock").start() as front,
    ):
        blk = front.blk()
        blk.submit(blk.prepare(0, 0, room=SECTOR))
        blk.ring.kick()
        kept = disk.take()
        result = ctl("pause", "--timeout", "0.1")
        assert (result.status, result.out) == (1, "")
        assert "paused, but 1 in flight are not back after 0.1 s" in result.err
        assert backend.is_paused
        kept.complete()
        assert ctl("pause").out == "paused\n"
