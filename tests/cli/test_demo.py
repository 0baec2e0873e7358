"""``vhost-user demo``: what it shows, and that it sees wrong data."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from peer.process import eventually

from .command import LIMIT, command, run

QUICK = ["--seconds", "0.1", "--size", "2M"]

DEVICES = """
import sys

from ram import Ram


class Slipped(Ram):
    '''Writes one sector to the wrong place.'''

    def write(self, offset, buf):
        super().write(offset + 512 if offset == 1 << 20 else offset, buf[:-512])


class Rotten(Ram):
    '''Turns a bit of one byte, now and then, once the check of the whole disk is over.'''

    reads = 0

    def read(self, offset, buf):
        super().read(offset, buf)
        self.reads += 1
        if self.reads > 100 and self.reads % 64 == 0:
            buf[len(buf) - 1] ^= 0x80


class Failing(Ram):
    def read(self, offset, buf):
        raise OSError(5, "worn out")


class Unmade(Ram):
    def __init__(self, size):
        print("making", file=sys.stderr)
        raise RuntimeError("no room")


class Talkative(Ram):
    def __init__(self, size):
        print("hello", file=sys.stderr)
        super().__init__(size)


def other():
    import vhost_user as vu

    return vu.Rng()
"""


def test_three_disks_are_driven_and_every_byte_is_checked() -> None:
    result = run("demo", *QUICK)
    assert (result.status, result.err) == (0, "")
    *table, last = result.out.splitlines()
    assert table[0].split() == ["operations", "bytes", "requests/s"]
    row = re.compile(r"(.*?) {2,}([\d,]+) {2,}[\d.]+ \wiB {2,}([\d,]+)")
    found = [row.fullmatch(line) for line in table[1:]]
    names = [match[1] for match in found if match]
    assert names == ["Python, a call a request", "Python, a call a batch", "Rust, a file"]
    assert all(int(match[2].replace(",", "")) > 0 for match in found if match)
    assert last == "all data read was the data written"


def test_a_device_of_ones_own_is_driven(ram: str) -> None:
    result = run("demo", "--device", "ram.py:Ram", *QUICK)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[1].startswith("ram.py:Ram  ")
    result = run("demo", "--device", "ram.py", "size=64K", "serial=x", "--seconds", "0.1")
    assert result.status == 0
    Path("devices.py").write_text(DEVICES)
    assert run("demo", "--device", "devices.py:Talkative", *QUICK).status == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Slipped", r"wrong data: bytes \d+ to \d+ are not what was written there"),
        ("Rotten", r"wrong data: \d+ of \d+ requests read wrong data, the first at byte \d+"),
        ("Failing", r"read at offset \d+ failed: I/O error \(1\)"),
        (
            "Unmade",
            r"the server did not start: Unmade\(size=2097152\) failed: RuntimeError: no room",
        ),
        ("other", r".+"),
    ],
)
def test_a_device_that_is_no_good_disk_is_status_1_and_said(
    ram: str, name: str, problem: str
) -> None:
    Path("devices.py").write_text(DEVICES)
    result = run("demo", "--device", f"devices.py:{name}", *QUICK)
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(f"vhost-user: devices.py:{name}: {problem}\n", result.err), result.err


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(directory))
    assert run("demo", *QUICK).status == 0
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, directory: Path, number: signal.Signals
) -> None:
    monkeypatch.setenv("TMPDIR", str(directory))
    with subprocess.Popen(command("demo", "--seconds", "2")) as demo:
        assert eventually(lambda: any(directory.glob("*/disk.sock")), LIMIT)
        (server,) = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        demo.send_signal(number)
        assert demo.wait(LIMIT) == 130
    assert not Path(f"/proc/{server}").exists()
    assert list(directory.iterdir()) == []
