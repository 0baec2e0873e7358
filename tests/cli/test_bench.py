"""``vhost-user bench``."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from .command import LIMIT, Server, command, run

NAMES = [
    *("socket", "rw", "block_size", "iodepth", "numjobs"),
    *("packed", "in_order", "inflight", "dirty_log", "iommu", "seconds", "operations", "bytes"),
    *("iops", "bytes_per_second", "latency_p50_us", "latency_p99_us", "kicks", "calls"),
    *("verified", "errors", "mismatches"),
]


@pytest.mark.parametrize("pattern", ["randread", "randwrite", "read", "write"])
def test_a_measurement_adds_up(image: str, pattern: str) -> None:
    with Server("blk", "--blk-file", image, "--num-queues", "2", "--socket-path", "d.sock"):
        options = ["--rw", pattern, "--bs", "8k", "--iodepth", "4", "--numjobs", "2"]
        result = run("bench", "d.sock", "--json", "--runtime", "0.1", *options)
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert list(found) == NAMES
    assert (found["rw"], found["block_size"], found["numjobs"]) == (pattern, 8192, 2)
    assert found["operations"] > 0
    assert found["bytes"] == found["operations"] * 8192
    assert found["iops"] == pytest.approx(found["operations"] / found["seconds"])
    assert 0 < found["latency_p50_us"] <= found["latency_p99_us"]
    assert (found["errors"], found["mismatches"], found["verified"]) == (0, 0, 0)
    assert (Path(image).read_bytes() == bytes(1 << 20)) == (pattern in ("read", "randread"))


def test_people_get_a_table(image: str) -> None:
    with Server("blk", "--blk-file", image, "--socket-path", "d.sock"):
        result = run("bench", "d.sock", "--runtime", "0.1", "--verify", "--poll")
    assert result.status == 0
    assert result.err == "writing a pattern to 1 MiB\n"
    lines = result.out.splitlines()
    assert lines[0].startswith("d.sock: randread, 4 KiB, 32 in flight, 1 queue, 0.")
    titles = ["requests/s", "throughput", "latency p50", "latency p99"]
    titles += ["requests a kick", "requests a call", "verified"]
    assert [line.split("  ")[0] for line in lines[1:]] == titles


def test_a_record_a_dirty_log_and_an_iommu_are_there_if_asked(image: str) -> None:
    with Server("blk", "--blk-file", image, "--socket-path", "d.sock"):
        words = ["--runtime", "0.1", "--inflight", "--dirty-log", "--iommu", "--verify"]
        result = run("bench", "d.sock", *words)
    assert result.status == 0
    head = "d.sock: randread, 4 KiB, 32 in flight, 1 queue, with a record, with a dirty log, "
    assert result.out.startswith(f"{head}behind an IOMMU, 0.")


def test_more_queues_than_there_are_is_an_error_with_both_numbers(image: str) -> None:
    with Server("blk", "--blk-file", image, "--num-queues", "1", "--socket-path", "d.sock"):
        result = run("bench", "d.sock", "--numjobs", "2", "--runtime", "0.1")
    assert (result.status, result.out) == (1, "")
    assert "2" in result.err
    assert "1" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("pattern", ["randwrite", "write"])
def test_a_check_of_what_is_read_where_nothing_is_read_is_status_2(pattern: str) -> None:
    """Nor is the disk looked at: there is none."""
    result = run("bench", "nowhere.sock", "--verify", "--rw", pattern)
    problem = f"--verify checks what is read, and --rw {pattern} reads nothing"
    assert (result.status, result.out) == (2, "")
    assert problem in result.err


def test_a_read_only_disk_is_not_written(image: str) -> None:
    with Server("blk", "--blk-file", image, "--read-only", "--socket-path", "d.sock"):
        for also in (["--rw", "write"], ["--rw", "randwrite"], ["--verify"]):
            result = run("bench", "d.sock", "--runtime", "0.1", *also)
            problem = "d.sock is read-only: it can only be read, without --verify"
            assert result == (1, "", f"vhost-user: {problem}\n")
        assert run("bench", "d.sock", "--runtime", "0.1").status == 0


FORGETFUL = """
from ram import Ram


class Forgetful(Ram):
    def read(self, offset, buf):
        super().read(offset, buf)
        buf[0] ^= 1


class Failing(Ram):
    def read(self, offset, buf):
        raise OSError(5, "worn out")
"""


def test_wrong_data_and_failed_requests_are_status_1_after_the_numbers(ram: str) -> None:
    Path("bad.py").write_text(FORGETFUL)
    options = ["--runtime", "0.1", "--json"]
    words = ["size=64K", "--socket-path", "b.sock"]
    with Server("run", "bad.py:Forgetful", *words):
        result = run("bench", "b.sock", "--verify", *options)
    assert result.status == 1
    assert json.loads(result.out)["mismatches"] > 0
    assert result.err.endswith(" read wrong data\n")
    with Server("run", "bad.py:Failing", *words):
        result = run("bench", "b.sock", *options)
    assert result.status == 1
    assert json.loads(result.out)["errors"] > 0
    assert "requests failed" in result.err


def test_an_interrupted_measurement_is_status_130_and_the_back_end_lives(image: str) -> None:
    words = ["--blk-file", image, "--socket-path", "d.sock", "--log-level", "info"]
    with Server("blk", *words) as server:
        bench = subprocess.Popen(command("bench", "d.sock", "--runtime", "60"))
        assert server.process.stderr is not None
        while "front-end connected" not in server.process.stderr.readline():
            pass
        bench.send_signal(signal.SIGINT)
        assert bench.wait(LIMIT) == 130
        assert run("info", "d.sock").status == 0


STUCK = """
import sys, threading, vhost_user as vu
class Stuck(vu.BlockDevice):
    def __init__(self):
        super().__init__(size=1 << 20, read_only=True)
    def read(self, offset, buf):
        print("reading", file=sys.stderr, flush=True)
        threading.Event().wait()
"""


def test_ctrl_c_ends_a_measurement_of_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    with Server("run", "stuck.py", "--socket-path", "stuck.sock") as server:
        bench = subprocess.Popen(command("bench", "stuck.sock", "--timeout", "3600"))
        assert server.process.stderr is not None
        while "reading" not in server.process.stderr.readline():
            pass
        bench.send_signal(signal.SIGINT)
        assert bench.wait(LIMIT) == 130
        server.process.kill()


def test_a_back_end_that_goes_away_is_status_3(ram: str) -> None:
    words = ["run", ram, "size=64K", "--socket-path", "ram.sock", "--log-level", "info"]
    with Server(*words) as server:
        bench = subprocess.Popen(
            command("bench", "ram.sock", "--runtime", "60"), stderr=subprocess.PIPE, text=True
        )
        assert server.process.stderr is not None
        while "front-end connected" not in server.process.stderr.readline():
            pass
        server.process.kill()
        _, complaint = bench.communicate(timeout=LIMIT)
    assert bench.returncode == 3
    assert complaint.startswith("vhost-user: ram.sock: ")
    assert complaint.count("\n") == 1
