"""A disk and a driver for it, at the two ends of a real socket."""

from __future__ import annotations

import sys
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .. import Backend, Device, RequestError, VirtioBlkDriver
from ..devices.block import Disk
from .xen import XenGuest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypedDict, Unpack

    from typing_extensions import Buffer

    from ..xen import XenOptions

    class BackendOptions(TypedDict, total=False):
        """Options of ``Backend`` that a test may choose."""

        keep_listening: bool
        mode: int
        group: str | None
        threads: int | Literal["per-queue"]
        batch: int
        poll_us: int
        cpus: Sequence[int] | None
        copy_budget: int
        drain: float
        any_memory_file: bool
        on_error: Literal["report", "raise", "stop"]
        xen: XenOptions | None


class TestedDisk(VirtioBlkDriver):
    """A driver whose errors are raised from the device's own, if that is in the same process."""

    __test__ = False
    backend: Backend
    """The back-end that serves the disk."""

    def pread(self, n: int, offset: int) -> bytes:
        """Reads ``n`` bytes at ``offset``."""
        with self._cause():
            return super().pread(n, offset)

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Writes ``data`` at ``offset``."""
        with self._cause():
            return super().pwrite(data, offset)

    def flush(self) -> None:
        """Has all writes put on stable storage."""
        with self._cause():
            super().flush()

    def discard(self, offset: int, length: int) -> None:
        """Says that these bytes are no longer needed."""
        with self._cause():
            super().discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Makes these bytes zeroes."""
        with self._cause():
            super().write_zeroes(offset, length, unmap=unmap)

    @contextmanager
    def _cause(self) -> Iterator[None]:
        try:
            yield
        except (RequestError, TimeoutError) as error:
            cause = self.backend.take_failure()
            if cause is None and isinstance(error, TimeoutError):
                cause = _stuck(self.backend.device)
            raise _with_text_of(cause, error) from cause


class BlkFactory(Protocol):
    """Serves a disk and connects a driver to it, until the test is over."""

    def __call__(
        self,
        device: Device,
        /,
        *,
        num_queues: int = 1,
        queue_size: int = 128,
        timeout: float = 5.0,
        guest: XenGuest | None = None,
        packed: bool = False,
        in_order: bool = False,
        iommu: bool = False,
        **backend: Unpack[BackendOptions],
    ) -> TestedDisk:
        """The driver of ``device``, as ``blk`` gives it."""


@contextmanager
def blk(
    device: Device,
    *,
    num_queues: int = 1,
    queue_size: int = 128,
    timeout: float = 5.0,
    guest: XenGuest | None = None,
    packed: bool = False,
    in_order: bool = False,
    iommu: bool = False,
    **backend: Unpack[BackendOptions],
) -> Iterator[TestedDisk]:
    """Serves ``device`` on a socket of its own and gives a driver that is connected to it.

    What a callback raises is raised by the driver's method, as the ``__cause__`` of its
    ``RequestError``; so is what else a request failed for. The cause of a ``TimeoutError`` shows
    where a callback is that does not return. ``packed``, ``in_order``, ``iommu``: what
    ``VirtioBlkDriver`` takes. ``backend``: options of ``Backend``.
    ``guest``: the driver's rings and buffers lie in this guest of Xen, and fill its memory:
    ``ValueError`` if another's do. At the end nothing of it may still be mapped:
    ``AssertionError``. ``TypeError`` for a device that is no disk.
    """
    _check_disk(device)
    options: dict[str, Any] = {"on_error": "raise", **backend}
    if guest is not None:
        _check_free(guest)
        options["xen"] = guest.options(options.get("xen"))
    with tempfile.TemporaryDirectory(prefix="vhost-") as directory:
        socket = Path(directory, "blk")
        with (
            Backend(device, socket=socket, **options) as running,
            TestedDisk(
                socket,
                num_queues=num_queues,
                queue_size=queue_size,
                timeout=timeout,
                guest=guest,
                packed=packed,
                in_order=in_order,
                iommu=iommu,
            ) as driver,
        ):
            driver.backend = running
            yield driver
    if guest is not None:
        guest.assert_released()


def _with_text_of(cause: BaseException | None, error: OSError) -> OSError:
    """An error as ``error``, which says what its cause says too."""
    if cause is None:
        return error
    first = next(iter(str(cause).splitlines()), "")
    text = f"{error.strerror}: {type(cause).__name__}" + (f": {first}" if first else "")
    return type(error)(error.errno, text).with_traceback(error.__traceback__)


def _stuck(device: Device) -> BaseException | None:
    """An error that shows where a callback of the device is at this moment, if it is in one."""
    for frame in sys._current_frames().values():  # noqa: SLF001 - there is no other way to ask
        first = frame
        while first.f_back is not None:
            first = first.f_back
        if first.f_code.co_argcount and first.f_locals.get(first.f_code.co_varnames[0]) is device:
            name = f"{type(device).__name__}.{first.f_code.co_name}"
            stack = "".join(traceback.format_stack(frame)).rstrip()
            return RuntimeError(f"{name} has not returned. It is here:\n{stack}")
    return None


def _check_disk(device: Device) -> None:
    """Says that there is no driver for the device; what is no device at all is told by Backend."""
    number = getattr(device, "device_id", Disk.device_id)
    if isinstance(device, Device) and number != Disk.device_id:
        raise TypeError(
            f"vhost_blk drives disks; {type(device).__name__} has device_id {number}: call its "
            "methods in the test instead"
        )


def _check_free(guest: XenGuest) -> None:
    if not isinstance(guest, XenGuest):
        raise TypeError(f"guest is a vhost_user.testing.XenGuest, not {guest!r}")
    if used := guest.in_use():
        raise ValueError(f"{guest} is another driver's: {len(used)} of its pages are mapped")
