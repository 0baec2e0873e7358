"""`--run`: a command that ends the server with it."""

import os
import signal
import sys
from pathlib import Path

import pytest
from peer.process import eventually

from .command import Server, run

DRIVE = """
import os
import sys

import vhost_user as vu

with vu.VirtioBlkDriver.connect(os.environ["socket"]) as disk:
    disk.pwrite(b"x" * 512, 0)
    assert disk.pread(512, 0) == b"x" * 512
print(os.environ["socket"])
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def drive(directory: Path) -> str:
    (directory / "drive.py").write_text(DRIVE)
    return f"{sys.executable} drive.py"


@pytest.mark.parametrize("status", [0, 7])
@pytest.mark.parametrize("hold", [[], ["--hold"]])
def test_the_server_ends_with_its_command_and_its_status(
    image: str, drive: str, hold: list[str], status: int
) -> None:
    result = run("blk", image, *hold, "--socket-path", "d.sock", "--run", f"{drive} {status}")
    assert result.status == status, result.err
    assert result.out == f"{Path('d.sock').absolute()}\n"
    assert Path(image).read_bytes()[:512] == b"x" * 512
    assert not Path("d.sock").exists()


def test_without_a_path_there_is_a_place_for_the_socket(ram: str, drive: str) -> None:
    result = run("run", ram, "size=64K", "--run", f"{drive} 0")
    assert (result.status, result.err) == (
        0,
        f"listening on {result.out.strip()}  blk 64 KiB 16 queues\n",
    )
    assert not Path(result.out.strip()).parent.exists()


def test_the_shell_sees_the_path(image: str) -> None:
    result = run("blk", image, "--socket-path", "d.sock", "--run", 'test -S "$socket" && exit 9')
    assert result.status == 9


def test_a_command_that_a_signal_ends_has_the_status_of_shells(image: str) -> None:
    words = ["blk", image, "--socket-path", "d.sock", "--run", "kill -KILL $$"]
    assert run(*words).status == 128 + signal.SIGKILL


def test_hold_runs_a_command_beside_any_back_end(image: str, drive: str) -> None:
    words = ["hold", "d.sock", "--run", f"{drive} 3", "--"]
    result = run(*words, sys.executable, "-m", "vhost_user", "blk", image)
    assert result.status == 3, result.err


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_signal_to_the_server_ends_its_command(image: str) -> None:
    told = "echo $$ >pid.new && mv pid.new pid && exec sleep 1000"
    with Server("blk", image, "--socket-path", "d.sock", "--run", told) as server:
        assert eventually(Path("pid").exists)
        pid = int(Path("pid").read_text())
        assert is_there(pid)
        assert server.end().status == 0
    assert eventually(lambda: not is_there(pid))


def test_a_device_that_fails_ends_the_command(directory: Path, drive: str) -> None:
    (directory / "broken.py").write_text(
        "import vhost_user as vu\n"
        "class Broken(vu.BlockDevice):\n"
        "    def __init__(self):\n"
        "        super().__init__(size=65536)\n"
        "    def read(self, offset, buf):\n"
        "        raise ValueError('broken')\n"
        "    def write(self, offset, buf):\n"
        "        raise ValueError('broken')\n"
    )
    told = f"echo $$ >pid; {drive} 0; exec sleep 1000"
    result = run("run", "broken.py", "--on-error", "stop", "--run", told)
    assert result.status == 1
    assert "vhost-user: Broken failed: ValueError: broken" in result.err
    assert eventually(lambda: not is_there(int(Path("pid").read_text())))


def test_a_command_has_no_socket_in_a_descriptor(image: str) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    result = run("blk", image, "--fd", str(reading), "--run", "true", pass_fds=[reading])
    os.close(reading)
    assert (result.status, result.err) == (
        2,
        "vhost-user: --run needs a path for its command: not with --fd\n",
    )
