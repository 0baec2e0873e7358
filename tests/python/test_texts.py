"""The texts of errors say what was wrong once, and what to do."""

import errno
from pathlib import Path

import pytest
import vhost_user as vu

from .disks import RamDisk
from .programs import Programs, line


@pytest.mark.parametrize("connect", [vu.Frontend.connect, vu.VirtioBlkDriver.connect])
def test_a_failed_connection_names_its_path_once(vhost_socket: Path, connect: object) -> None:
    assert callable(connect)
    with pytest.raises(FileNotFoundError) as caught:
        connect(vhost_socket, timeout=0.1)
    assert str(caught.value) == (
        f"[Errno 2] cannot connect to {vhost_socket}: No such file or directory (os error 2)"
    )


def test_a_group_that_may_not_be_given_is_named(programs: Programs) -> None:
    """An ordinary user may give a file to groups of their own only."""
    process = programs.start(
        """
        import tempfile
        import vhost_user.server
        backend = vu.Backend(RamDisk(), socket=tempfile.mkdtemp() + "/s", group="0")
        if os.geteuid() == 0:
            os.chmod(os.path.dirname(backend._socket), 0o777)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            backend.start()
        except PermissionError as error:
            print(error.errno, str(error).replace(backend._socket, "X"))
        """
    )
    said = line(process)
    assert said == (
        f"{errno.EPERM} [Errno 1] cannot give socket X to group 0: "
        "Operation not permitted (os error 1)"
    )


class Raising(RamDisk):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def read(self, offset: int, buf: memoryview, /) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EIO, "injected"), "OSError: [Errno 5] injected"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
    ids=repr,
)
def test_the_driver_s_error_has_the_text_of_its_cause(
    vhost_blk: vu.testing.BlkFactory, error: Exception, text: str
) -> None:
    with pytest.raises(vu.RequestError) as caught:
        vhost_blk(Raising(error)).pread(512, 1024)
    assert str(caught.value) == f"[Errno 5] read at offset 1024 failed: I/O error (1): {text}"
    assert caught.value.__cause__ is error


async def coroutine(*_: object) -> None:
    """Runs when it is awaited."""


@pytest.mark.parametrize("name", ["read", "write", "on_batch"])
def test_a_coroutine_of_a_disk_is_refused_with_the_way_that_works(name: str) -> None:
    device = type("Slow", (RamDisk,), {name: coroutine})()
    with pytest.raises(TypeError, match=r"on_batch: defer\(\) each .* thread or an event loop"):
        vu.Backend(device, socket="x")


def test_a_coroutine_of_another_device_is_refused_with_the_way_that_works() -> None:
    device = type("Slow", (vu.Device,), {"device_id": 4, "on_queue": coroutine})()
    with pytest.raises(
        TypeError, match=r"defer\(\) each request, and complete\(\) it from a thread"
    ):
        vu.Backend(device, socket="x")
