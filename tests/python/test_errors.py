"""Exceptions in callbacks: a status for the driver, one full report, and what `on_error` says."""

import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import vhost_user as vu

from .disks import RamDisk
from .driver import open_driver
from .panics import panics
from .repeats import repeats


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
    assert "Raising.read raised ValueError (read of 4096 bytes at offset" in ours[0].getMessage()
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
    assert [line.split(": ")[1].partition(" (")[0] for line in full] == [
        "Both.read raised ValueError",
        "Both.read raised KeyError",
        "Both.write raised ValueError",
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
        f"Grumbling.{name} raised RuntimeError (a call from the back-end)"
        for name in ("on_start", "on_stop", "on_disconnect")
    ]


def test_exceptions_have_the_bases_that_callers_expect() -> None:
    for plain in (vu.NegotiationError, vu.ProtocolError, vu.GuestError, vu.StaleRequestError):
        assert issubclass(plain, vu.VhostUserError)
    for of_system in (vu.RequestError, vu.MappingError):
        assert issubclass(of_system, vu.VhostUserError)
        assert issubclass(of_system, OSError)
        assert of_system(errno.EIO, "text").errno == errno.EIO


def returning(name: str, value: object) -> vu.BlockDevice:
    """A disk whose method of this name returns something."""
    disk: vu.BlockDevice = type("Returning", (RamDisk,), {name: lambda *_: value})()
    return disk


def do_nothing(*_: object) -> None:
    """A callback."""


USES: dict[str, Callable[[vu.VirtioBlkDriver], object]] = {
    "read": lambda disk: disk.pread(512, 0),
    "write": lambda disk: disk.pwrite(bytes(512), 0),
    "on_batch": lambda disk: disk.pread(512, 0),
    "flush": lambda disk: disk.flush(),
    "discard": lambda disk: disk.discard(0, 512),
    "write_zeroes": lambda disk: disk.write_zeroes(0, 512),
}


@pytest.mark.parametrize("name", USES)
def test_a_callback_that_returns_something_fails_its_request_and_is_told_what_to_do(
    vhost_blk: vu.testing.BlkFactory, name: str
) -> None:
    disk = vhost_blk(returning(name, bytes(512)))
    with pytest.raises(vu.RequestError) as caught:
        USES[name](disk)
    assert caught.value.errno == errno.EIO
    advice = {
        "read": r"buf\[:\] = data",
        "on_batch": "request.data",
    }.get(name, "raise OSError")
    with pytest.raises(TypeError, match=f"{name} returned bytes, .* None: .*{advice}"):
        raise caught.value.__cause__ or AssertionError


def test_a_flush_that_returns_something_fails_the_writes_that_wait_for_it(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    for batched in ({}, {"on_batch": do_nothing}):
        returned: list[object] = []
        flush = {"flush": lambda *_, returned=returned: returned[0] if returned else None}
        disk = vhost_blk(type("Flushing", (RamDisk,), {**flush, **batched})())
        disk.set_writeback(False)
        returned.append(0)
        with pytest.raises(vu.RequestError) as caught:
            disk.pwrite(bytes(512), 0)
        assert "flush returned int" in str(caught.value.__cause__)


def test_the_coroutine_of_a_method_that_hides_it_is_not_awaited_and_fails_the_request(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    class Later:
        def __await__(self) -> Iterator[None]:
            yield

    disk = vhost_blk(returning("read", Later()))
    with pytest.raises(vu.RequestError) as caught:
        disk.pread(512, 0)
    assert "read returned Later" in str(caught.value.__cause__)
    assert "nobody awaits it" in str(caught.value.__cause__)


def test_a_queue_callback_that_returns_something_is_told_what_to_do(
    vhost_socket: Path,
) -> None:
    class Returning(vu.Device):
        device_id = 2

        def on_queue(self, queue: vu.Queue, /) -> None:
            return list(queue)  # type: ignore[return-value]

    backend = vu.Backend(Returning(), socket=vhost_socket, on_error="raise")
    with backend, open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        assert driver.wait().head == read.head
        failure = backend.take_failure()
        assert isinstance(failure, TypeError)
        assert "on_queue returned list" in str(failure)
        assert "request.writable" in str(failure)


async def coroutine(*_: object) -> None:
    """Runs when it is awaited."""


def generator(*_: object) -> Iterator[None]:
    yield


async def asynchronous_generator(*_: object) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (coroutine, "a coroutine function"),
        (generator, "a generator function"),
        (asynchronous_generator, "an asynchronous generator function"),
    ],
)
@pytest.mark.parametrize("name", [*USES, "on_start", "on_stop", "on_reset", "on_disconnect"])
def test_a_method_that_a_call_does_not_run_is_refused_at_once(
    function: Callable[..., object], what: str, name: str
) -> None:
    device = type("Lazy", (RamDisk,), {name: function})()
    with pytest.raises(TypeError, match=rf"Lazy\.{name} is {what}, .* plain method"):
        vu.Backend(device, socket="x")


def test_queue_and_configuration_callbacks_are_refused_alike() -> None:
    own = {"device_id": 4, "on_queue": do_nothing}
    for name in ("on_queue", "read_config", "write_config"):
        device = type("Lazy", (vu.Device,), {**own, name: coroutine})()
        with pytest.raises(TypeError, match=rf"Lazy\.{name} is a coroutine function"):
            vu.Backend(device, socket="x")


def test_a_callback_that_is_set_on_the_object_is_looked_at_too() -> None:
    device = RamDisk()
    device.read = coroutine  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError, match=r"RamDisk\.read is a coroutine function"):
        vu.Backend(device, socket="x")


@pytest.mark.parametrize("name", ["on_start", "on_stop", "on_disconnect"])
def test_a_panic_in_a_control_call_costs_that_call_and_no_more(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The next front-end is served, and the back-end ends."""
    for failure in panics():
        device = Raising()
        setattr(device, name, raising(failure))
        with vu.Backend(device, socket=vhost_socket) as backend:
            for _ in range(2):
                with open_driver(vhost_socket) as driver:
                    read = driver.read(0, 512)
                    driver.wait()
                    assert read.status == 0
        assert backend.state == "stopped"
    assert f"a panic in {name}" in caplog.text


def test_a_device_that_makes_up_exception_classes_fills_no_log(
    vhost_blk: vu.testing.BlkFactory, caplog: pytest.LogCaptureFixture
) -> None:
    class Inventive(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            raise type("Made", (OSError,), {})(errno.EIO, "made up")

    driver = vhost_blk(Inventive(), on_error="report")
    for _ in range(400):
        with pytest.raises(vu.RequestError):
            driver.pread(512, 0)
    driver.close()
    driver.backend.stop()
    in_full = [record for record in caplog.records if record.exc_info]
    numbers = [record.getMessage() for record in caplog.records if not record.exc_info]
    assert len(in_full) == 257
    assert repeats(numbers, "Inventive.read raised exceptions of other classes") == 400 - 257


def test_a_panic_in_a_logging_handler_costs_that_record_and_no_more(vhost_socket: Path) -> None:
    class Handler(logging.Handler):
        failures: ClassVar = panics()
        texts: ClassVar[list[str]] = []

        def emit(self, record: logging.LogRecord) -> None:
            if self.failures:
                raise self.failures.pop()
            self.texts.append(record.getMessage())

    logger, handler = logging.getLogger("vhost_user.device"), Handler()
    logger.addHandler(handler)
    try:
        device = Raising(*(type(f"Error{n}", (Exception,), {})() for n in range(20)))
        with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
            for _ in range(20):
                driver.read(0, 512)
                driver.wait()
    finally:
        logger.removeHandler(handler)
    assert "Error19" in handler.texts[-1]


def raising(failure: BaseException) -> Callable[[], None]:
    def callback() -> None:
        raise failure

    return callback
