"""Exceptions in callbacks: a status for the driver, one full report, and what `on_error` says."""

import errno
import logging
from pathlib import Path

import pytest
import vhost_user as vu

from .disks import RamDisk
from .driver import open_driver


class Raising(RamDisk):
    """Raises what it is told to."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__()
        self.errors = list(errors)

    def read(self, offset: int, buf: memoryview, /) -> None:
        if self.errors:
            raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        super().read(offset, buf)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.EIO),
        (NotImplementedError("never"), errno.EOPNOTSUPP),
        (ZeroDivisionError("a bug"), errno.EIO),
    ],
)
def test_an_exception_becomes_a_status_and_the_cause_of_the_driver_s_error(
    vhost_blk: vu.testing.BlkFactory, error: Exception, number: int
) -> None:
    disk = vhost_blk(Raising(error))
    with pytest.raises(vu.RequestError) as caught:
        disk.pread(512, 0)
    assert caught.value.errno == number
    assert caught.value.__cause__ is error


def test_the_device_goes_on_after_an_exception(vhost_socket: Path) -> None:
    device = Raising(ValueError("once"))
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        failed = driver.read(0, 512)
        driver.wait()
        device.errors.clear()
        served = driver.read(0, 512)
        driver.wait()
        assert (failed.status, served.status) == (1, 0)
        assert served.data == bytes(512)


def test_ten_thousand_exceptions_are_one_report_and_a_number(
    vhost_blk: vu.testing.BlkFactory, caplog: pytest.LogCaptureFixture
) -> None:
    disk = vhost_blk(Raising(ValueError("again")), on_error="report")
    report = disk.run_load(ops=10_000, depth=32, verify="none")
    assert report.errors >= 10_000
    disk.close()
    disk.backend.stop()
    ours = [r for r in caplog.records if r.name == "vhost_user.device"]
    assert "read raised ValueError: read of 4096 bytes at offset" in ours[0].getMessage()
    assert ours[0].exc_info is not None
    assert ours[0].levelno == logging.ERROR
    repeats = sum(int(r.getMessage().split()[-3]) for r in ours[1:])
    assert repeats == report.errors - 1
    assert len(ours) < 10


def test_kinds_are_told_apart_by_class_and_callback(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Both(Raising):
        def write(self, offset: int, buf: memoryview, /) -> None:
            raise ValueError("write")

    device = Both(ValueError("a"), KeyError("b"), ValueError("c"), ValueError("c"))
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for _ in range(3):
            driver.read(0, 512)
            driver.wait()
        driver.write(0, bytes(512))
        driver.wait()
    full = [r.getMessage() for r in caplog.records if r.exc_info]
    assert [line.split(": ")[1] for line in full] == [
        "read raised ValueError",
        "read raised KeyError",
        "write raised ValueError",
    ]


def test_on_error_stop_ends_the_back_end_and_run_raises(vhost_socket: Path) -> None:
    error = ValueError("the end")
    backend = vu.Backend(Raising(error), socket=vhost_socket, on_error="stop").start()
    with open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        driver.wait()
        assert read.status == 1
        with pytest.raises(ValueError, match="the end") as caught:
            backend.run()
    assert caught.value is error
    assert backend.state == "stopped"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_wish_to_end_is_granted(vhost_socket: Path, error: BaseException) -> None:
    backend = vu.Backend(Raising(error), socket=vhost_socket).start()
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        driver.wait()
        if isinstance(error, SystemExit):
            with pytest.raises(SystemExit) as caught:
                backend.run()
            assert caught.value.code == 3
        else:
            backend.run()
    assert backend.state == "stopped"
    assert not vhost_socket.exists()


def test_exceptions_of_the_control_leg_are_reported_and_go_nowhere(
    vhost_blk: vu.testing.BlkFactory, caplog: pytest.LogCaptureFixture
) -> None:
    class Grumbling(RamDisk):
        def on_start(self) -> None:
            raise RuntimeError("start")

        def on_stop(self) -> None:
            raise RuntimeError("stop")

        def on_disconnect(self) -> None:
            raise RuntimeError("disconnect")

    disk = vhost_blk(Grumbling(), on_error="report")
    assert disk.pread(512, 0) == bytes(512)
    disk.close()
    disk.backend.stop()
    told = [r.getMessage().split(": ")[1] for r in caplog.records if r.exc_info]
    assert told == [
        f"{name} raised RuntimeError" for name in ("on_start", "on_stop", "on_disconnect")
    ]


def test_exceptions_have_the_bases_that_callers_expect() -> None:
    for plain in (vu.NegotiationError, vu.ProtocolError, vu.GuestError, vu.StaleRequestError):
        assert issubclass(plain, vu.VhostUserError)
    for of_system in (vu.RequestError, vu.MappingError):
        assert issubclass(of_system, vu.VhostUserError)
        assert issubclass(of_system, OSError)
        assert of_system(errno.EIO, "text").errno == errno.EIO
