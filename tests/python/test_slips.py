"""Small slips of those who write devices and tests: each has a clear error or the right result."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu

from .disks import SIZE, BatchDisk, RamDisk

# The socket's mode.


@pytest.mark.parametrize("mode", [600, 640, 644, 660, 666, 700, 777])
def test_a_mode_in_decimal_is_refused_and_shown_in_octal(vhost_socket: Path, mode: int) -> None:
    with pytest.raises(ValueError, match=rf"not {mode} \(0o\d+\): write 0o{mode}, as octal"):
        vu.Backend(RamDisk(), socket=vhost_socket, mode=mode)


@pytest.mark.parametrize("mode", [-1, 1024, 1800])
def test_a_mode_out_of_range_is_refused(vhost_socket: Path, mode: int) -> None:
    with pytest.raises(ValueError, match=r"mode is permission bits, 0 to 0o777, not -?\d+ .*\)$"):
        vu.Backend(RamDisk(), socket=vhost_socket, mode=mode)


def test_a_mode_that_is_no_number_is_refused(vhost_socket: Path) -> None:
    with pytest.raises(TypeError, match="mode is permission bits, as 0o660, not '660'"):
        vu.Backend(RamDisk(), socket=vhost_socket, mode="660")  # type: ignore[arg-type]


def test_a_mode_in_octal_is_the_file_s(vhost_socket: Path) -> None:
    with vu.Backend(RamDisk(), socket=vhost_socket, mode=0o660):
        assert vhost_socket.stat().st_mode & 0o7777 == 0o660


# Options of a wrong type, and numbers that there are not.


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("threads", "2", "threads is a number, as 2, or 'per-queue', not '2'"),
        ("threads", 2.0, "threads is a number, as 2, or 'per-queue', not 2.0"),
        ("batch", "2", "batch is a number of requests, as 64, not '2'"),
        ("poll_us", 2.5, "poll_us is microseconds, as 32, not 2.5"),
        ("copy_budget", "64M", "copy_budget is a number of bytes, not '64M'"),
        ("cpus", 3, "cpus is a list of processor numbers, as [0, 1], not 3"),
        ("cpus", "0-3", "cpus is a list of processor numbers, as [0, 1], not '0-3'"),
        ("group", 2.0, "group is the name of a group or its number, as 'kvm' or 1000, not 2.0"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_in_plain_words(
    vhost_socket: Path, option: str, value: object, answer: str
) -> None:
    wrong: dict[str, Any] = {option: value}
    with pytest.raises(TypeError) as caught:
        vu.Backend(RamDisk(), socket=vhost_socket, **wrong)
    assert str(caught.value) == answer


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("threads", 65536, "threads is 1 to 65535 or 'per-queue', not 65536"),
        ("batch", 32769, "batch is 1 to 32768, not 32769"),
        ("poll_us", 1000001, "poll_us is 0 to 1000000, not 1000001"),
        ("copy_budget", 1 << 64, "copy_budget is 0 to 18446744073709551615, not"),
        ("cpus", [0, 65536], "cpus has processor numbers, 0 to 65535, not 65536"),
        ("cpus", [-1], "cpus has processor numbers, 0 to 65535, not -1"),
        ("group", -1, "group is 0 to 4294967294, not -1"),
        ("group", "4294967295", "group is 0 to 4294967294, not 4294967295"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(
    vhost_socket: Path, option: str, value: object, answer: str
) -> None:
    wrong: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=r"is \d|has") as caught:
        vu.Backend(RamDisk(), socket=vhost_socket, **wrong)
    assert str(caught.value).startswith(answer)


@pytest.mark.parametrize("kind", [int, str])
def test_a_group_is_given_by_its_number_too(vhost_socket: Path, kind: Callable[[int], Any]) -> None:
    own = os.getgid()
    with vu.Backend(RamDisk(), socket=vhost_socket, group=kind(own)):
        assert vhost_socket.stat().st_gid == own


# Disks of no bytes.


@pytest.mark.parametrize("make", [vu.NullDisk, RamDisk])
def test_a_disk_of_no_bytes_is_refused(make: Callable[..., vu.Device]) -> None:
    with pytest.raises(ValueError, match=r"size is 512 to 2\*\*63 - 512 bytes, not 0"):
        make(size=0)


def test_a_disk_is_not_shrunk_to_nothing() -> None:
    disk = RamDisk()
    with pytest.raises(ValueError, match="size is 512 to"):
        disk.resize(0)
    assert disk.size == SIZE


@pytest.mark.parametrize("size", [0, 511])
def test_a_file_with_no_sector_is_refused(tmp_path: Path, size: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"disk\.img has {size} bytes, and a disk has 512 at"):
        vu.FileDisk(image)
    image.write_bytes(bytes(512))
    assert vu.FileDisk(image).size == 512


# Copies of a device that is served.

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda device: pickle.loads(pickle.dumps(device)),
}


class Cloned(vu.Device):
    device_id = 4
    last = b""

    def on_queue(self, queue: vu.Queue, /) -> None:
        """Leaves everything in the ring."""


@pytest.mark.parametrize("clone", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_served_disk_is_a_disk_that_is_served_by_nobody(
    vhost_socket: Path, clone: Callable[[vu.NullDisk], vu.NullDisk]
) -> None:
    device = vu.NullDisk(size=SIZE, serial="one")
    with (
        vu.Backend(device, socket=vhost_socket) as backend,
        vu.VirtioBlkDriver.connect(vhost_socket) as driver,
    ):
        assert backend.wait_running(5)
        twin = clone(device)
        twin.resize(2 * SIZE)
        assert (twin.size, twin.serial, twin.served_by) == (2 * SIZE, "one", None)
        assert int.from_bytes(driver.config(0, 8), "little") == SIZE // 512
        other = vhost_socket.with_name("other")
        with vu.Backend(twin, socket=other), vu.VirtioBlkDriver.connect(other) as second:
            assert second.size == 2 * SIZE


@pytest.mark.parametrize("clone", COPIES.values(), ids=COPIES)
def test_a_copy_of_another_device_has_no_queues_and_its_own_attributes(
    vhost_socket: Path, clone: Callable[[Cloned], Cloned]
) -> None:
    device = Cloned(config=b"abc")
    device.last = b"words"
    with vu.Backend(device, socket=vhost_socket):
        twin = clone(device)
        assert (twin.config, twin.last, twin.served_by) == (b"abc", b"words", None)
        assert len(device.queues) == 1
        with pytest.raises(vu.VhostUserError, match="no back-end serves this device yet"):
            twin.queues  # noqa: B018
        twin.config = b"longer"


# Loads that are checked.


def test_a_load_on_a_disk_that_was_not_prepared_is_not_checked(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    driver = vhost_blk(BatchDisk())
    driver.pwrite(b"x" * 512, 0)
    report = driver.run_load(ops=1000)
    assert (report.verified, report.mismatches) == (0, 0)


def test_a_load_on_a_disk_that_was_prepared_is_checked(vhost_blk: vu.testing.BlkFactory) -> None:
    driver = vhost_blk(BatchDisk())
    driver.prepare_load(seed=3)
    for access in ("randread", "randwrite", "read"):
        report = driver.run_load(access, ops=1000, seed=3)
        assert (report.verified > 0, report.mismatches) == (access != "randwrite", 0)


@pytest.mark.parametrize("verify", ["sampled", "all"])
def test_a_load_that_is_to_be_checked_against_nothing_is_refused(
    vhost_blk: vu.testing.BlkFactory, verify: Any
) -> None:
    driver = vhost_blk(BatchDisk())
    wanted = r"the pattern of prepare_load\(seed=1\), and this driver has not written it"
    with pytest.raises(ValueError, match=wanted):
        driver.run_load(ops=100, verify=verify)
    driver.prepare_load(seed=2)
    with pytest.raises(ValueError, match=r"has written that of seed=2: call prepare_load\(seed=1"):
        driver.run_load(ops=100, verify=verify)
    assert driver.run_load(ops=100, verify=verify, seed=2).mismatches == 0


SPOILS: dict[str, Callable[[vu.VirtioBlkDriver], object]] = {
    "pwrite": lambda driver: driver.pwrite(bytes(512), 0),
    "discard": lambda driver: driver.discard(0, 512),
    "write_zeroes": lambda driver: driver.write_zeroes(0, 512),
    "a load of another seed": lambda driver: driver.run_load("write", ops=10, seed=9),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_what_is_written_after_the_pattern_ends_the_check(
    vhost_blk: vu.testing.BlkFactory, spoil: Callable[[vu.VirtioBlkDriver], object]
) -> None:
    driver = vhost_blk(vu.NullDisk(size=SIZE))
    driver.prepare_load()
    spoil(driver)
    assert driver.run_load(ops=100).verified == 0
    with pytest.raises(ValueError, match="or something else since"):
        driver.run_load(ops=100, verify="all")


# Names.


@pytest.mark.parametrize(
    ("name", "callback"),
    [
        ("trim", "discard"),
        ("write_zeros", "write_zeroes"),
        ("fsync", "flush"),
        ("on_started", "on_start"),
    ],
)
def test_a_method_that_is_never_called_is_told(
    caplog: pytest.LogCaptureFixture, name: str, callback: str
) -> None:
    device = type("Misspelt", (RamDisk,), {name: lambda *_: None})()
    vu.Backend(device, socket="x")
    assert [record.getMessage() for record in caplog.records] == [
        f"Misspelt.{name} is never called: is it to be {callback}?"
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_a_device_with_on_batch_is_not_told_to_have_read_and_write(
    caplog: pytest.LogCaptureFixture,
) -> None:
    methods = ("on_batch", "pread", "pwrite", "reader", "writer", "sync")
    device = type("Own", (vu.BlockDevice,), {name: lambda *_: None for name in methods})
    vu.Backend(device(size=SIZE), socket="x")
    assert [record.getMessage() for record in caplog.records] == [
        "Own.sync is never called: is it to be flush?"
    ]


def test_methods_of_a_device_s_own_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    class Own(RamDisk):
        trims = 0

        def discard(self, offset: int, length: int, /) -> None:
            self.trim(offset, length)

        def trim(self, offset: int, length: int) -> None:
            self.trims += 1

        def close(self) -> None:
            """Has nothing to do with the back-end."""

        def start(self) -> None:
            """Neither has this."""

        def _on_start(self) -> None:
            """Nor what is private."""

    vu.Backend(Own(), socket="x")
    vu.Backend(vu.Rng(), socket="x")
    assert caplog.records == []


TYPOS = """import vhost_user as vu
import vhost_user.testing


def probe(path: str, disk: vu.BlockDevice) -> None:
    vu.BlockDevise
    vu.VirtioBlkDriver.connect(path, tiemout=3)
    vu.Frontend.connect(path, xem=True)
    vu.Backend(disk, sokcet=path)
    vhost_user.testing.blk(disk, on_eror="stop")
    vu.VirtioBlkDriver.connect(path, timeout=3, num_queues=2)
    vu.Frontend.connect(path, timeout=3, xen=True)
    vhost_user.testing.blk(disk, on_error="stop", num_queues=2)
"""


def test_type_checkers_see_misspelt_names_and_keywords(tmp_path: Path) -> None:
    program = tmp_path / "typos.py"
    program.write_text(TYPOS)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"MYPY_CACHE_DIR": str(tmp_path / "cache")},
    )
    found = [line.partition("typos.py:")[2] for line in result.stdout.splitlines()]
    errors = {int(line.partition(":")[0]): line for line in found if "error:" in line}
    assert sorted(errors) == [6, 7, 8, 9, 10], result.stdout
    words = ("BlockDevise", "tiemout", "xem", "sokcet", "on_eror")
    for number, word in zip(sorted(errors), words, strict=True):
        assert word in errors[number]
