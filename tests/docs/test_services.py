"""The units on the page about the command are started by a real systemd, with their hardening."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.process import eventually
from rig.service_manager import SYSTEMD, ServiceManager

from .test_units import HARDENING, PAGES, SERVICES, write_units

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEMD.exists(), reason="needs root and an installed systemd"
)

SECTOR = 512


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    world = tmp_path / "world"
    world.mkdir()
    try:
        started = ServiceManager(world)
    except PermissionError as error:
        pytest.skip(f"no world of its own can be had: {error}")
    with started as manager:
        write_units(manager.path("/run/systemd/system"), "/usr/bin/vhost-user")
        image = manager.path("/srv/disk.img")
        image.write_bytes(bytes(1 << 20))
        os.chown(image, 64000, 64000)
        manager.systemctl("daemon-reload")
        yield manager


def write(manager: ServiceManager, socket: str, data: bytes) -> None:
    """Writes and flushes through the socket, and looks into the image."""
    with FrontEnd.connect(str(manager.path(socket))).start() as front:
        assert front.blk().write(0, data).status == Status.OK
        assert front.blk().flush().status == Status.OK
    assert manager.path("/srv/disk.img").read_bytes()[:SECTOR] == data


def shows(manager: ServiceManager, unit: str, name: str, value: str) -> bool:
    return manager.show(unit, name) == value


def status_of(manager: ServiceManager, unit: str) -> dict[str, str]:
    """The kernel's account of the service's process."""
    pid = manager.host_pid(int(manager.show(unit, "MainPID")))
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("place", ["/etc/x", "/usr/x", "/dev/x", "/sys/x", "/root/x"])
def test_the_world_cannot_change_the_host(manager: ServiceManager, place: str) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        manager.path(place).write_bytes(b"")
    assert list(manager.path("/tmp").glob("pytest-*")) == []


def test_the_service_serves_with_its_hardening(manager: ServiceManager) -> None:
    unit, socket = "vhost-disk.service", "/run/vhost-disk/disk.sock"
    manager.systemctl("start", unit)  # Type=notify: front-ends can connect when this returns.
    state = manager.path(socket).stat()
    assert (state.st_mode & 0o777, state.st_uid, state.st_gid) == (0o660, 64000, 64001)
    write(manager, socket, b"x" * SECTOR)
    status = status_of(manager, unit)
    assert status["Uid"].split() == ["64000"] * 4
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {status["CapEff"], status["CapBnd"]} == {"0" * 16}
    manager.systemctl("stop", unit)
    assert manager.show(unit, "Result") == "success"
    assert not manager.path(socket).exists()


def test_a_service_that_dies_is_started_again(manager: ServiceManager) -> None:
    unit, socket = "vhost-disk.service", "/run/vhost-disk/disk.sock"
    manager.systemctl("start", unit)
    first = int(manager.show(unit, "MainPID"))
    os.kill(manager.host_pid(first), signal.SIGKILL)
    assert eventually(lambda: manager.show(unit, "NRestarts") == "1")
    assert eventually(lambda: manager.show(unit, "ActiveState") == "active")
    assert int(manager.show(unit, "MainPID")) not in (0, first)
    write(manager, socket, b"y" * SECTOR)


def test_a_keeper_that_dies_leaves_its_front_end_to_the_next(manager: ServiceManager) -> None:
    unit, socket = "vhost-disk-held.service", "/run/vhost-disk/disk.sock"
    manager.systemctl("start", unit)
    with FrontEnd.connect(str(manager.path(socket))).start() as front:
        for kills, data in enumerate((b"a" * SECTOR, b"b" * SECTOR, b"c" * SECTOR)):
            assert eventually(partial(shows, manager, unit, "NRestarts", str(kills)))
            assert front.blk().write(0, data).status == Status.OK
            assert front.blk().flush().status == Status.OK
            assert manager.path("/srv/disk.img").read_bytes()[:SECTOR] == data
            assert eventually(partial(shows, manager, unit, "ActiveState", "active"))
            os.kill(manager.host_pid(int(manager.show(unit, "MainPID"))), signal.SIGKILL)


def test_the_first_front_end_starts_the_service_of_a_socket(manager: ServiceManager) -> None:
    name, socket = "vhost-disk-on-demand", "/run/vhost-disk.sock"
    manager.systemctl("start", f"{name}.socket")
    state = manager.path(socket).stat()
    assert (state.st_mode & 0o777, state.st_gid) == (0o660, 64001)
    assert manager.show(f"{name}.service", "ActiveState") == "inactive"
    write(manager, socket, b"z" * SECTOR)
    assert manager.show(f"{name}.service", "ActiveState") == "active"
    assert status_of(manager, f"{name}.service")["Seccomp"] == "2"
    manager.systemctl("stop", f"{name}.service")
    write(manager, socket, b"w" * SECTOR)  # The socket is still there, and starts it again.


def test_a_service_that_cannot_start_fails_at_once(manager: ServiceManager) -> None:
    manager.path("/srv/disk.img").unlink()
    with pytest.raises(AssertionError, match="Job for vhost-disk\\.service failed"):
        manager.systemctl("start", "vhost-disk.service")


def exposure(name: str, folder: Path) -> float:
    """What systemd-analyze says of a unit, from 0 to 10."""
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(folder / name)]
    found = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"}
    shown = subprocess.run(words, capture_output=True, text=True, env=found, check=False).stdout
    score = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", shown)
    assert score is not None, shown
    return float(score[1])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("name", SERVICES)
def test_the_page_has_the_points_for_exposure(name: str, tmp_path: Path) -> None:
    said = r"exposed by (\S+) of 10 points, and by (\S+) without\."
    with_it, without = re.findall(said, PAGES[0].read_text())[0]
    write_units(tmp_path, "/bin/true")
    # What counts how much differs a little between versions of systemd.
    assert exposure(name, tmp_path) == pytest.approx(float(with_it), abs=0.5)
    (tmp_path / HARDENING).unlink()
    assert exposure(name, tmp_path) == pytest.approx(float(without), abs=0.5)
