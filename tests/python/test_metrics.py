"""What a back-end measures, and how it gives that away."""

import math
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import SECTOR, Status
from peer.front_end import FrontEnd
from peer.process import eventually

from .disks import BatchDisk, Keeping, RamDisk

LIMIT = 10.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where metrics are given away."""
    return tmp_path / "metrics"


def dial(place: Path) -> socket.socket:
    scraper = socket.socket(socket.AF_UNIX)
    scraper.settimeout(LIMIT)
    scraper.connect(str(place))
    return scraper


def everything(scraper: socket.socket) -> bytes:
    """What comes until the other end hangs up, however that ends."""
    text = b""
    try:
        while piece := scraper.recv(65536):
            text += piece
    except ConnectionResetError:
        pass
    return text


def ask(scraper: socket.socket, request: bytes = b"GET /metrics HTTP/1.1\r\n\r\n") -> bytes:
    with scraper:
        scraper.sendall(request)
        return everything(scraper)


def scrape(place: Path) -> str:
    head, _, body = ask(dial(place)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    return body.decode()


def samples(text: str) -> dict[str, float]:
    """Each sample's value, by its name and its labels but that of the device."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {re.sub(r'device="[^"]*",?', "", name): float(value) for name, value in lines}


def of(backend: vu.Backend) -> dict[str, float]:
    return samples(backend.metrics().prometheus())


def test_requests_and_bytes_are_counted_by_queue_operation_and_status(socket_path: Path) -> None:
    with vu.Backend(RamDisk(num_queues=2), socket=socket_path, metrics="on") as backend:
        with FrontEnd.connect(str(socket_path)).start(queues=2) as front:
            assert front.blk(0).write(1, bytes(3 * SECTOR)).status == Status.OK
            assert front.blk(0).read(1, SECTOR).status == Status.OK
            assert front.blk(1).read(0, 8 * SECTOR).status == Status.OK
            assert front.blk(1).read(1 << 20, SECTOR).status == Status.IOERR
            found = of(backend)
        by = {
            (queue, op, status): found[
                f'vhost_user_requests_total{{queue="{queue}",op="{op}",status="{status}"}}'
            ]
            for queue in (0, 1)
            for op in ("read", "write", "flush", "discard", "write_zeroes", "get_id", "other")
            for status in ("ok", "error")
        }
        some = {key: count for key, count in by.items() if count}
        assert some == {
            (0, "write", "ok"): 1,
            (0, "read", "ok"): 1,
            (1, "read", "ok"): 1,
            (1, "read", "error"): 1,
        }
        assert found['vhost_user_bytes_total{queue="0",op="write"}'] == 3 * SECTOR
        assert found['vhost_user_bytes_total{queue="1",op="read"}'] == 8 * SECTOR
        metrics = backend.metrics()
        assert (metrics.requests, metrics.errors, metrics.in_flight) == (4, 1, 0)
        assert (metrics.bytes_read, metrics.bytes_written) == (9 * SECTOR, 3 * SECTOR)
        assert metrics.bytes == 12 * SECTOR


class Slow(RamDisk):
    """A read takes a while."""

    seconds = 0.02

    def read(self, offset: int, buf: memoryview, /) -> None:
        import time

        time.sleep(self.seconds)


def test_times_are_those_of_the_device_and_of_each_stage(socket_path: Path) -> None:
    with vu.Backend(Slow(), socket=socket_path, metrics="on") as backend:
        assert math.isnan(backend.metrics().quantile("read", 0.5))
        with FrontEnd.connect(str(socket_path)).start() as front:
            for _ in range(3):
                assert front.blk().read(0, SECTOR).status == Status.OK
            # The last is published before its stage is counted.
            key = 'vhost_user_stage_seconds_count{queue="0",stage="publish"}'
            assert eventually(lambda: of(backend)[key] == 3)
        metrics, found = backend.metrics(), of(backend)
        for name in ("read", "request", "callback"):
            # No sleep is shorter, and the last of all values is at most its bucket's bound.
            assert metrics.quantile(name, 1.0) >= Slow.seconds, name
        counts = {
            stage: found[f'vhost_user_stage_seconds_count{{queue="0",stage="{stage}"}}']
            for stage in ("ring", "gil_wait", "callback", "backend", "publish")
        }
        assert counts == {"ring": 3, "gil_wait": 3, "callback": 3, "backend": 0, "publish": 3}
        assert metrics.quantile("batch_size", 1.0) == 1.0
        assert found['vhost_user_request_seconds_count{queue="0",op="read"}'] == 3
        assert found['vhost_user_request_seconds_sum{queue="0",op="read"}'] >= 3 * Slow.seconds


def test_a_device_without_python_is_timed_as_a_back_end(socket_path: Path) -> None:
    with vu.Backend(vu.NullDisk(size=1 << 20), socket=socket_path, metrics="on") as backend:
        with FrontEnd.connect(str(socket_path)).start() as front:
            assert front.blk().read(0, SECTOR).status == Status.OK
            key = 'vhost_user_stage_seconds_count{queue="0",stage="backend"}'
            assert eventually(lambda: of(backend)[key] == 1)
        assert of(backend)['vhost_user_stage_seconds_count{queue="0",stage="callback"}'] == 0


def test_a_request_that_is_kept_has_an_age_that_grows(socket_path: Path) -> None:
    disk = Keeping()
    with (
        vu.Backend(disk, socket=socket_path, metrics="on") as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        assert backend.metrics().oldest_in_flight == 0.0
        request = front.blk().prepare(0, 0, room=SECTOR)
        blk = front.blk()
        blk.submit(request)
        blk.ring.kick()
        kept = disk.take()
        first = backend.metrics().oldest_in_flight
        assert first > 0.0
        assert backend.metrics().in_flight == 1
        assert eventually(lambda: backend.metrics().oldest_in_flight > first + 0.01)
        kept.complete()
        assert eventually(lambda: backend.metrics().in_flight == 0)
        assert backend.metrics().oldest_in_flight == 0.0
        # A kept request is timed to its answer, not to the end of its callback.
        assert backend.metrics().quantile("read", 1.0) > 0.01


class Holding(RamDisk):
    """Keeps views of what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.views.append(buf[:])


def test_requests_that_views_hold_are_counted_as_long_as_they_do(socket_path: Path) -> None:
    disk = Holding()
    with (
        vu.Backend(disk, socket=socket_path, metrics="on") as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        blk = front.blk()
        blk.submit(blk.prepare(1, 0, data=bytes(SECTOR)))
        blk.ring.kick()
        assert eventually(lambda: of(backend)["vhost_user_held_requests{}"] == 1)
        disk.views.clear()
        assert eventually(lambda: of(backend)["vhost_user_held_requests{}"] == 0)


class Raising(RamDisk):
    """Each read raises an exception of another class."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        if offset == 0:
            raise OSError(5, "worn out")
        raise type(f"Made{offset // SECTOR}", (Exception,), {})


def test_exceptions_are_counted_by_their_class_and_classes_have_a_limit(socket_path: Path) -> None:
    with (
        vu.Backend(Raising(), socket=socket_path, metrics="on") as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        for sector in (0, 0, *range(1, 101)):
            assert front.blk().read(sector, SECTOR).status == Status.IOERR
        name = "vhost_user_exceptions_total"
        counted = {key: n for key, n in of(backend).items() if key.startswith(name)}
        assert counted[name + '{type="OSError"}'] == 2
        assert counted[name + '{type="Made1"}'] == 1
        assert len(counted) == 65
        assert counted[name + '{type="other"}'] == 100 - 63
        assert sum(counted.values()) == 102


def test_private_copies_guest_errors_and_reconnections_are_counted(socket_path: Path) -> None:
    with vu.Backend(RamDisk(), socket=socket_path, metrics="on") as backend:
        assert of(backend)["vhost_user_reconnects_total{}"] == 0
        for _ in range(3):
            with FrontEnd.connect(str(socket_path)).start() as front:
                assert front.blk().read(0, SECTOR).status == Status.OK
        found = of(backend)
        assert found["vhost_user_reconnects_total{}"] == 2
        assert found["vhost_user_guest_errors_total{}"] == 0
        assert found["vhost_user_bounce_bytes_total{}"] == 0


def test_nothing_is_measured_unless_it_is_asked_for(socket_path: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=socket_path)
    with pytest.raises(vu.VhostUserError, match="has not started"):
        backend.metrics()
    with backend, pytest.raises(vu.VhostUserError, match='metrics="on"'):
        backend.metrics()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0.0.0.0:9100", "127.0.0.1:9100"),
        ("unix:", "followed by a path"),
        ("9100", "none of unix:PATH"),
        ("", "none of unix:PATH"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        vu.Backend(RamDisk(), socket="x.sock", metrics=given)


def test_a_quantile_that_there_is_not_is_refused(socket_path: Path) -> None:
    with vu.Backend(RamDisk(), socket=socket_path, metrics="on") as backend:
        metrics = backend.metrics()
        with pytest.raises(ValueError, match='there is no "reed"; there are request'):
            metrics.quantile("reed", 0.5)
        for q in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=r"0\.0 to 1\.0"):
                metrics.quantile("read", q)
        assert {"request", "read", "other", "gil_wait", "batch_size"} <= set(metrics.names)


def test_a_socket_is_its_owners_and_goes_with_the_back_end(socket_path: Path, place: Path) -> None:
    with vu.Backend(RamDisk(), socket=socket_path, metrics=f"unix:{place}") as backend:
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        assert backend.metrics_address == f"unix:{place}"
        assert 'vhost_user_inflight{queue="0"}' in samples(scrape(place))
    assert not place.exists()
    assert backend.metrics_address is None


def test_a_port_is_chosen_by_the_system_and_told(socket_path: Path) -> None:
    with vu.Backend(RamDisk(), socket=socket_path, metrics="127.0.0.1:0") as backend:
        host, _, port = (backend.metrics_address or "").rpartition(":")
        with socket.create_connection((host, int(port)), LIMIT) as scraper:
            assert b"vhost_user_build_info" in ask(scraper)
        other = vu.Backend(RamDisk(), socket=f"{socket_path}2", metrics=f"{host}:{port}")
        with pytest.raises(OSError, match="Address already in use"):
            other.start()


def test_a_file_is_there_at_once_is_replaced_as_a_whole_and_goes(
    socket_path: Path, place: Path
) -> None:
    with vu.Backend(RamDisk(), socket=socket_path, metrics=f"file:{place}"):
        assert eventually(lambda: "vhost_user_requests_total" in place.read_text())
        assert [entry.name for entry in place.parent.iterdir() if "metrics" in entry.name] == [
            place.name
        ]
    assert not place.exists()


def test_a_file_that_cannot_be_written_says_so(socket_path: Path, tmp_path: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=socket_path, metrics=f"file:{tmp_path}/no/where")
    with pytest.raises(OSError, match="cannot write metrics to"):
        backend.start()
    assert not socket_path.exists()


def test_no_name_breaks_the_text(tmp_path: Path, place: Path) -> None:
    path = tmp_path / 'a"b\\c\nd'
    with vu.Backend(RamDisk(), socket=path, metrics=f"unix:{place}"):
        text = scrape(place)
    label = f'device="{tmp_path}/a\\"b\\\\c\\nd"'
    assert all(label in line for line in text.splitlines() if not line.startswith("#"))


@pytest.fixture
def served(socket_path: Path, place: Path) -> Iterator[Path]:
    with vu.Backend(BatchDisk(), socket=socket_path, metrics=f"unix:{place}"):
        yield socket_path


BAD: dict[str, tuple[bytes, bytes]] = {
    "another method": (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
    "another path": (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
    "no end": (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 2000, b"400"),
    "nothing but ends": (b"\r\n\r\n", b"400"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_scrape_is_refused_and_the_next_one_answered(
    served: Path, place: Path, bad: str
) -> None:
    request, status = BAD[bad]
    scraper = dial(place)
    with scraper:
        with suppress(BrokenPipeError):  # It reads as much as it takes.
            scraper.sendall(request)
        answer = everything(scraper)
    assert answer.startswith(b"HTTP/1.1 " + status) or bad == "no end"
    assert "vhost_user_inflight" in scrape(place)


def test_scrapers_that_hang_hold_up_neither_others_nor_the_guest_nor_the_end(
    served: Path, place: Path
) -> None:
    with ExitStack() as stack, FrontEnd.connect(str(served)).start() as front:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(40):
            silent = stack.enter_context(dial(place))
            if number % 2:
                silent.sendall(b"GET /metr")
        assert "vhost_user_inflight" in scrape(place)
        assert front.blk().read(0, SECTOR).status == Status.OK
        # The oldest had to go; the youngest are still waited for.
        assert len(os.listdir("/proc/self/fd")) < before + 80


def test_a_scraper_that_does_not_read_is_hung_up_on(served: Path, place: Path) -> None:
    with dial(place) as silent:
        silent.settimeout(30.0)
        assert silent.recv(1) == b""


def test_many_scrapes_leave_no_descriptor_and_no_thread(served: Path, place: Path) -> None:
    scrape(place)
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(200):
        scrape(place)

    def now() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    assert eventually(lambda: now() == before)


def test_counters_go_on_from_one_front_end_to_the_next(served: Path, place: Path) -> None:
    key = 'vhost_user_requests_total{queue="0",op="read",status="ok"}'
    for count in (1, 2):
        with FrontEnd.connect(str(served)).start() as front:
            assert front.blk().read(0, SECTOR).status == Status.OK
        assert samples(scrape(place))[key] == count
    assert samples(scrape(place))['vhost_user_inflight{queue="0"}'] == 0


class Echo(vu.Device):
    """Answers nothing."""

    device_id = 4

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            request.complete(0)


def test_a_device_of_another_type_has_one_operation(socket_path: Path) -> None:
    with vu.Backend(Echo(), socket=socket_path, metrics="on") as backend:
        names = backend.metrics().names
    assert names == ["request", "batch_size", "ring", "gil_wait", "callback", "backend", "publish"]
