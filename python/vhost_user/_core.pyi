"""The Rust core. Its classes for users are exported by ``vhost_user``."""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Literal, Self, TypeAlias, final

from typing_extensions import Buffer

from .devices.base import Device

__version__: str

def end_logging() -> None: ...

_State: TypeAlias = Literal["listening", "negotiating", "running", "paused", "draining", "stopped"]

@final
class BlockRequest:
    """A block request in the hands of ``on_batch``. Its numbers have been checked."""

    @property
    def op(self) -> Literal["read", "write", "flush", "discard", "write_zeroes", "get_id"]:
        """What is asked for."""
    @property
    def offset(self) -> int:
        """First byte on the disk; of the first range of a discard or write_zeroes."""
    @property
    def length(self) -> int:
        """Bytes; of the first range of a discard or write_zeroes."""
    @property
    def queue(self) -> int:
        """The vring's number."""
    @property
    def unmap(self) -> bool:
        """write_zeroes: whether the space may be given up."""
    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """discard, write_zeroes: all ranges, as (offset, length) in bytes."""
    @property
    def data(self) -> memoryview:
        """The data as one view: writable for a read, read-only for a write. The driver's memory
        if it is in one piece there, else a copy that is carried over with the answer.
        """
    @property
    def segments(self) -> tuple[memoryview, ...]:
        """The data's pieces as they lie in the driver's memory."""
    def copy_from(self, src: Buffer, /) -> int:
        """Copies bytes to a read's data; returns how many. ``ValueError`` if they are too many."""
    def copy_to(self, dst: Buffer, /) -> int:
        """Copies a write's data to ``dst``, as far as both go; returns how many bytes."""
    def fill(self, byte: int = 0, /) -> None:
        """Sets each byte of a read's data."""
    def preadv(self, fd: int, offset: int | None = None) -> int:
        """Reads a read's data from a file, now; returns the bytes read, fewer at its end."""
    def pwritev(self, fd: int, offset: int | None = None) -> int:
        """Writes a write's data to a file, now; returns the bytes written."""
    def submit(self, fd: int, offset: int | None = None) -> None:
        """Has a read or write carried out on a file when ``on_batch`` has returned, with the
        interpreter given up, and answered by how that went. The file must stay open until then.
        What lies past its end reads as zeroes.
        """
    def complete(self) -> None:
        """Answers: done. ``StaleRequestError`` if it was answered or its queue has stopped."""
    def fail(self, errno: int = 5) -> None:
        """Answers: failed; EOPNOTSUPP and ENOSYS as unsupported, all else as an I/O error."""
    def defer(self) -> Self:
        """Keeps the request past ``on_batch``: answer it later, from any thread. Dropped without
        an answer it fails, with a ``ResourceWarning``.
        """

@final
class Request:
    """One descriptor chain of any device."""

    @property
    def readable(self) -> memoryview:
        """What the driver wrote, read-only; its own memory if it is in one piece, else a copy."""
    @property
    def writable(self) -> memoryview:
        """What the device may fill; a copy, if not in one piece, is carried over at the end."""
    def complete(self, written: int | None = None) -> None:
        """Gives the request back with ``written`` bytes of ``writable`` filled; all by default.
        ``StaleRequestError`` if it went back before or its queue has stopped.
        """
    def defer(self) -> Self:
        """Keeps the request past ``on_queue``: complete it later, from any thread. Dropped before
        that it goes back with no byte written, with a ``ResourceWarning``.
        """

@final
class Queue:
    """One virtqueue, while ``on_queue`` runs."""

    @property
    def index(self) -> int:
        """The vring's number."""
    @property
    def size(self) -> int:
        """The most entries that its ring may have."""
    def __iter__(self) -> Iterator[Request]:
        """Takes the requests that were found, in the driver's order."""
    def __next__(self) -> Request: ...
    def batch(self, max: int = 64) -> list[Request]:
        """Takes up to ``max`` requests of those that were found."""

@final
class Backend:
    """A running back-end; see ``vhost_user.Backend``."""

    def __new__(
        cls,
        device: Device,
        kind: str,
        *,
        overrides: Sequence[str],
        listen: str | PathLike[str] | None,
        dial: str | PathLike[str] | None,
        fd: int | None,
        mode: int,
        group: int | None,
        keep_listening: bool,
        threads: int,
        batch: int,
        poll_us: int,
        cpus: Sequence[int],
        drain: float,
        on_error: str,
        label: str,
    ) -> Self: ...
    @property
    def state(self) -> _State: ...
    def wait_running(self, timeout: float | None) -> bool: ...
    def stop(self, drain: float) -> list[tuple[int, int]]: ...
    def request_stop(self) -> None: ...
    def stopped_fd(self) -> int: ...
    def resize(self, size: int, /) -> None: ...
    def set_config(self, config: bytes, /) -> None: ...
    def take_failure(self) -> BaseException | None: ...
    def counters(self) -> tuple[int, int, int, int, int, int]: ...
