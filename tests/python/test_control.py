"""The socket at which a back-end takes orders: what is one, who may give them, what is left."""

import json
import multiprocessing
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.blk import SECTOR, Status
from peer.front_end import FrontEnd
from peer.process import eventually

from .disks import RamDisk

LIMIT = 20.0
"""Seconds after which an answer that should have come fails its test."""


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def backend(socket_path: Path, control: Path) -> Iterator[vu.Backend]:
    with vu.Backend(RamDisk(), socket=socket_path, control=control) as backend:
        yield backend


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LIMIT)
    client.connect(str(path))
    return client


def say(path: Path, data: bytes) -> bytes:
    """All that is answered to some bytes."""
    answer = b""
    with connect(path) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # It was hung up on us before all was read.
    return answer


def ask(path: Path, **order: Any) -> Any:
    return json.loads(say(path, json.dumps(order).encode() + b"\n"))


NO_ORDERS = [
    b"\xff\xfe",
    b"",
    b"[1, 2]",
    b"[" * 20000,
    b'{"do": 1}',
    b'{"do": ["pause"]}',
    b'{"do": "stop"}',
    b'{"do": "resize"}',
    b'{"do": "resize", "size": true}',
    b'{"do": "resize", "size": -5}',
    b'{"do": "resize", "size": 1' + b"0" * 400 + b"}",
    b'{"do": "resize", "size": 1000}',
    b'{"do": "drain", "seconds": NaN}',
    b'{"do": "drain", "seconds": "1"}',
    b'{"do": "drain", "seconds": 1' + b"0" * 400 + b"}",
    b'{"do": "log-level", "level": {}}',
]


@pytest.mark.parametrize("line", NO_ORDERS, ids=range(len(NO_ORDERS)))
def test_what_is_no_order_is_answered_by_why_and_changes_nothing(
    backend: vu.Backend, control: Path, line: bytes
) -> None:
    answer = json.loads(say(control, line + b"\n"))
    assert list(answer) == ["error"]
    assert answer["error"]
    assert (backend.state, backend.is_paused) == ("listening", False)
    assert ask(control, do="dump")["ok"]["device"]["size"] == 1 << 20


def test_several_orders_on_one_connection_are_answered_in_order(
    backend: vu.Backend, control: Path
) -> None:
    lines = say(control, b'{"do": "pause"}\n{"do": "what"}\n{"do": "resume"}\n').splitlines()
    assert [list(json.loads(line)) for line in lines] == [["ok"], ["error"], ["ok"]]
    assert not backend.is_paused


def test_an_order_may_come_in_pieces(backend: vu.Backend, control: Path) -> None:
    with connect(control) as client:
        for piece in (b'{"do": ', b'"pause"', b"}"):
            client.sendall(piece)
        assert not backend.is_paused
        client.sendall(b"\n")
        assert client.recv(100) == b'{"ok": {"in_effect": true, "in_flight": 0}}\n'


def test_an_order_without_end_is_cut_off(backend: vu.Backend, control: Path) -> None:
    assert say(control, b"x" * 300_000) in (b"", b'{"error": "an order has at most 65536 bytes"}\n')
    assert ask(control, do="dump")["ok"]["state"] == backend.state


def test_clients_that_say_nothing_or_read_nothing_hold_up_nobody(
    backend: vu.Backend, control: Path
) -> None:
    clients = [connect(control) for _ in range(20)]
    for client in clients[-4:]:
        client.sendall(b'{"do": ')
    clients[-5].sendall(b'{"do": "metrics"}\n' * 200)
    assert ask(control, do="dump")["ok"]["state"] == backend.state
    assert clients[0].recv(1) == b""  # It had to go for others.
    for client in clients:
        client.close()


def test_a_dump_tells_what_was_measured_of_what_was_seen(
    backend: vu.Backend, control: Path, socket_path: Path
) -> None:
    with FrontEnd.connect(str(socket_path)).start() as front:
        assert front.blk().read(0, SECTOR).status == Status.OK
        found = ask(control, do="dump")["ok"]
    assert (found["state"], found["paused"]) == ("running", False)
    assert (found["version"], found["pid"]) == (vu.__version__, os.getpid())
    assert found["queues"] == [queue._asdict() for queue in backend.stats()]
    assert 0 < found["p50_p99"]["read"][0] <= found["p50_p99"]["read"][1] < LIMIT
    assert "write" not in found["p50_p99"]
    assert "vhost_user_requests_total{" in ask(control, do="metrics")["ok"]["text"]


class Unwilling(RamDisk):
    def resize(self, size: int) -> None:
        raise RuntimeError(f"not to {size}")


def test_a_device_that_fails_to_do_it_is_told_of_and_goes_on(
    socket_path: Path, control: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with vu.Backend(Unwilling(), socket=socket_path, control=control):
        assert ask(control, do="resize", size=512) == {"error": "RuntimeError: not to 512"}
        assert "not to 512" in caplog.text
        assert ask(control, do="dump")["ok"]["state"] == "listening"


class Odd(vu.Device):
    device_id = 42

    def __init__(self) -> None:
        super().__init__()
        self.size = {1, 2}

    def on_queue(self, queue: vu.Queue, /) -> None:
        list(queue)


def test_a_device_that_is_no_disk_has_no_size(socket_path: Path, control: Path) -> None:
    with vu.Backend(Odd(), socket=socket_path, control=control):
        assert ask(control, do="dump")["ok"]["device"]["size"] is None
        assert ask(control, do="resize", size=512) == {"error": "Odd has no size"}


def test_the_socket_is_its_owners_and_goes_with_the_back_end(
    backend: vu.Backend, control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    backend.stop()
    assert [path.name for path in tmp_path.iterdir() if "control" in path.name] == []
    monkeypatch.chdir(tmp_path)
    with vu.Backend(RamDisk(), socket="other.sock", control="control.sock"):
        assert control.is_socket()
        monkeypatch.chdir("/")
    assert not control.exists()


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(
    backend: vu.Backend, control: Path, tmp_path: Path
) -> None:
    other = vu.Backend(RamDisk(), socket=tmp_path / "other.sock", control=control)
    with pytest.raises(OSError, match="another back-end takes orders there"):
        other.start()
    assert other.state == "stopped"
    assert not (tmp_path / "other.sock").exists()
    assert ask(control, do="dump")["ok"]["state"] == backend.state
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(stale))
    with vu.Backend(RamDisk(), socket=tmp_path / "other.sock", control=stale):
        assert ask(stale, do="dump")["ok"]["state"] == "listening"


def test_what_cannot_be_a_control_socket_is_an_error(socket_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path, said in [
        (file, "no socket"),
        (tmp_path / "absent" / "c.sock", "No such file"),
        (tmp_path / ("x" * 100), "over 98 bytes"),
    ]:
        with pytest.raises(OSError, match=said):
            vu.Backend(RamDisk(), socket=socket_path, control=path).start()
    assert file.read_text() == "mine"
    with pytest.raises(ValueError, match="control is a path"):
        vu.Backend(RamDisk(), socket=socket_path, control="")


def test_a_drain_ends_it_and_the_one_who_asked_is_told(backend: vu.Backend, control: Path) -> None:
    assert ask(control, do="drain", seconds=1) == {"ok": {"in_flight": 0}}
    assert eventually(lambda: backend.state == "stopped")


def _stop_in_fork(backend: vu.Backend) -> None:
    try:
        backend.stop()
    except vu.VhostUserError:
        os._exit(7)


def test_a_fork_has_no_part_in_it(backend: vu.Backend, control: Path) -> None:
    with connect(control) as client:
        child = multiprocessing.get_context("fork").Process(target=_stop_in_fork, args=(backend,))
        child.start()
        child.join()
        assert child.exitcode == 7
        client.sendall(b'{"do": "pause"}\n')
        assert client.recv(100).startswith(b'{"ok"')
    assert control.is_socket()
