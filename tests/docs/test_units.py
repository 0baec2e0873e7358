"""The units in the documents: systemd takes them, and what they start serves."""

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.process import eventually

from .document import blocks

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("cli.md", "operations.md")]
COMMAND = Path(sys.executable).parent / "vhost-user"
LIMIT = 20.0
UNITS = {
    block.note.removeprefix("unit: "): block.text
    for page in PAGES
    for block in blocks(page.read_text())
    if block.note.startswith("unit: ")
}
SERVICES = [name for name in UNITS if name.endswith(".service")]
HARDENING = "vhost-.service.d/hardening.conf"
"""A part of both services."""

KNOWN = {
    "Unit": {"Description"},
    "Install": {"WantedBy"},
    "Socket": {"ListenStream", "SocketMode", "SocketGroup"},
    "Service": {
        *("Type", "ExecStart", "Restart", "User", "SupplementaryGroups", "RuntimeDirectory"),
        *("ReadWritePaths", "ExecReload", "FileDescriptorStoreMax", "KillMode"),
    },
}
"""What systemd.unit(5), systemd.service(5), systemd.socket(5) and systemd.exec(5) have of these."""


def write_units(folder: Path, command: str) -> None:
    """Writes all units to ``folder``, with another command."""
    for name, text in UNITS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace("/usr/bin/vhost-user", command))


def parsed(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNITS[name])
    return parser


def test_there_are_units_with_and_without_a_socket_of_systemds() -> None:
    assert sorted(UNITS) == [
        HARDENING,
        "vhost-disk-held.service",
        "vhost-disk-on-demand.service",
        "vhost-disk-on-demand.socket",
        "vhost-disk.service",
    ]


@pytest.mark.parametrize("name", [name for name in UNITS if name != HARDENING])
def test_a_unit_has_nothing_but_known_settings(name: str) -> None:
    unit = parsed(name)
    kind = "Socket" if name.endswith(".socket") else "Service"
    assert {"Unit", kind} <= set(unit.sections()) <= {"Unit", kind, "Install"}
    for section in unit.sections():
        assert set(unit[section]) <= KNOWN[section]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("name", [name for name in UNITS if name != HARDENING])
def test_systemd_finds_no_fault_in_a_unit(name: str, tmp_path: Path) -> None:
    write_units(tmp_path, str(COMMAND))
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    found = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=found, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def command_of(name: str, folder: Path) -> list[str]:
    """What the unit starts, with its places in ``folder``."""
    text = parsed(name)["Service"]["ExecStart"]
    for place, here in (
        ("/usr/bin/vhost-user", COMMAND),
        ("/srv/", f"{folder}/"),
        ("/run/vhost-disk/", f"{folder}/"),
    ):
        text = text.replace(place, str(here))
    return text.replace("--group kvm", f"--group {os.getgid()}").split()


class Manager:
    """The other end of NOTIFY_SOCKET: sd_notify(3)."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.settimeout(LIMIT)
        self.environment = os.environ | {"NOTIFY_SOCKET": str(folder / "notify")}

    def hears(self) -> str:
        """What comes next, but for what is to be stored."""
        while (told := self.socket.recv(100).decode()).startswith("FDSTORE"):
            pass
        return told


@contextmanager
def started(words: list[str], manager: Manager, fd: int | None) -> Iterator[subprocess.Popen[str]]:
    """Starts a service as systemd does, with a socket as descriptor 3 if it has one."""
    script = 'exec "$@"' if fd is None else f'export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<&{fd} "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *words],
        env=manager.environment,
        pass_fds=[] if fd is None else [fd],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_unit_starts_serves_and_tells_of_its_start_and_end(
    name: str, socket_path: Path
) -> None:
    folder = socket_path.parent
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    manager, path = Manager(folder), str(folder / "disk.sock")
    with manager.socket, socket.socket(socket.AF_UNIX) as listener:
        fd = None
        if name.replace(".service", ".socket") in UNITS:
            listener.bind(path)
            listener.listen()
            fd = listener.fileno()
        with started(command_of(name, folder), manager, fd) as process:
            assert manager.hears() == "READY=1"
            with FrontEnd.connect(path).start() as front:
                assert front.blk().write(0, b"x" * 512).status == Status.OK
            assert Path(path).stat().st_mode & 0o777 == 0o660 or fd is not None
            process.send_signal(signal.SIGTERM)
            assert manager.hears() == "STOPPING=1"
            assert process.wait(LIMIT) == 0
    assert (folder / "disk.img").read_bytes()[:512] == b"x" * 512
    assert eventually(lambda: Path(path).exists() == (fd is not None))
