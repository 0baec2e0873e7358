"""Disks: VIRTIO 1.3, "Block Device"."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from .. import arguments
from .base import MAX_QUEUE_SIZE, MAX_REQUEST, Device

if TYPE_CHECKING:
    from .. import BlockBatch

BlkOp: TypeAlias = Literal["read", "write", "flush", "discard", "write_zeroes", "get_id"]

SECTOR = 512
"""Bytes of a sector: the unit of all virtio-blk addresses."""

BLKSSZGET = 0x1268
"""linux/fs.h: asks a block device for the bytes of its logical blocks."""

LIFE = ("on_start", "on_stop", "on_reset", "on_disconnect", "save", "load")
"""What a device in Python may hear besides requests."""

NUM_QUEUES = 16
"""Virtqueues that a disk offers: QEMU and libvirt want one for each processor of the guest, and
give up a disk that has fewer. One that the driver does not use costs nothing."""

MAX_BLOCK = 65536
"""Bytes of the largest logical block."""

MAX_SERIAL = 20
"""Bytes of a serial number."""


class Disk(Device):
    """What all disks have: the base of those below, none that can be served."""

    device_id: ClassVar[int] = 2

    transitional: ClassVar[bool] = True

    def __init__(
        self,
        *,
        size: int,
        block_size: int = 512,
        read_only: bool = False,
        num_queues: int = NUM_QUEUES,
        queue_size: int = MAX_QUEUE_SIZE,
        serial: str = "",
        max_request_bytes: int = MAX_REQUEST,
    ) -> None:
        """A disk of ``size`` bytes, a multiple of ``block_size``, and one block at least.

        ``block_size``: bytes of a logical block, as the guest is told: a power of two from 512 to
        65536.
        ``read_only``: the guest cannot write; the core refuses it if it tries.
        ``num_queues``: the most virtqueues that the driver may use. It uses one for each of its
        processors, most of the time; one that is not used has no thread and costs nothing.
        ``queue_size``: the most entries of each that are taken, a power of two. The front-end
        decides how many they are.
        ``serial``: at most 20 bytes that the guest can ask for.
        ``max_request_bytes``: most bytes of data of one request. A longer one fails with an I/O
        error and a log record, see ``Device``.
        """
        super().__init__(
            num_queues=num_queues, queue_size=queue_size, max_request_bytes=max_request_bytes
        )
        block_size = _checked_block_size(block_size)
        _check_size(size, block_size)
        check_serial(serial)
        self.size = size
        self.block_size = block_size
        self.read_only = arguments.flag("read_only", read_only)
        self.serial = serial

    def resize(self, size: int) -> None:
        """Changes the size, to a multiple of ``block_size``.

        If served, requests are held to it at once, and the front-end gets a notice: the driver
        sees it when it has read its configuration again.
        """
        _check_size(size, self.block_size)
        if self.served_by is not None:
            self.served_by.resize(size)
        self.size = size


class BlockDevice(Disk):
    """A disk whose data is in Python.

    The smallest needs ``read`` and, unless it is read-only, ``write``. Each request has been
    checked: it lies inside the disk, it is of whole blocks of ``block_size`` bytes, and a read-only
    disk is asked to change nothing. Others fail with an I/O error.

    Return means done. ``OSError`` fails the request with an I/O error, ``NotImplementedError`` as
    unsupported; any other exception is a bug: it fails the request too, and is logged.

    ``flush``, ``discard`` and ``write_zeroes`` are offered to the driver if they are overridden.
    Without ``flush`` the driver takes it that what ``write`` returned from is on stable storage.

    A class that overrides ``on_batch`` gets all requests there, and reads and writes by no other
    callback.
    """

    served_as = "block"

    def read(self, offset: int, buf: memoryview, /) -> None:
        """Fills all of ``buf`` with the data at ``offset``.

        ``buf`` is writable, of bytes, the driver's own memory if the request is in one piece. It
        is taken back when this returns. What keeps it, a slice of it, or a buffer taken from it,
        keeps the request: it is answered when the last of them is gone.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")

    def write(self, offset: int, buf: memoryview, /) -> None:
        """Takes the data in ``buf``, which is read-only, to ``offset``. See ``read``.

        A hostile driver may change the bytes while they are looked at: copy first, then check.
        """
        raise NotImplementedError(f"{type(self).__name__}.write")

    def flush(self) -> None:
        """Returns when all writes that have returned are on stable storage.

        Also called after each write, or after a batch with writes, when the driver has turned the
        write cache off or knows nothing of one; and then once more, on a thread of its own, after
        the last view of a write or its ``complete()``, if that comes after the callback.
        """
        raise NotImplementedError(f"{type(self).__name__}.flush")

    def discard(self, offset: int, length: int, /) -> None:
        """The driver no longer needs these bytes. Called for each range of a request."""
        raise NotImplementedError(f"{type(self).__name__}.discard")

    def write_zeroes(self, offset: int, length: int, unmap: bool, /) -> None:
        """These bytes read as zeroes from now on; with ``unmap`` their space may be given up."""
        raise NotImplementedError(f"{type(self).__name__}.write_zeroes")

    def on_batch(self, batch: BlockBatch, /) -> None:
        """Handles all requests that were found together, in the driver's order.

        ``batch`` is a sequence of requests, and moves the data of all its reads or writes at
        once. An override may as well take a ``Sequence[BlockRequest]``.

        When this returns, each read and write that was not failed, submitted or deferred is
        done. Flush, discard and write-zeroes requests that were not answered or deferred are
        passed to the methods of these names. An exception fails all that were not answered.
        """
        raise NotImplementedError(f"{type(self).__name__}.on_batch")


class _RustDisk(Disk):
    """A disk whose data never passes through Python."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        lost = [
            name
            for name in ("read", "write", "flush", "discard", "write_zeroes", "on_batch", *LIFE)
            if getattr(cls, name, None) is not getattr(Device, name, None)
        ]
        if lost:
            raise TypeError(
                f"{cls.__name__}.{lost[0]} would never be called: derive from BlockDevice instead"
            )


class FileDisk(_RustDisk):
    """A disk in a file or a block device of the host. Python is not asked for a request."""

    served_as = "file"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        direct: bool = False,
        incoming: bool = False,
        block_size: int | None = None,
        num_queues: int = NUM_QUEUES,
        queue_size: int = MAX_QUEUE_SIZE,
        serial: str = "",
        max_request_bytes: int = MAX_REQUEST,
    ) -> None:
        """The disk in ``path``, of its size now, which is a multiple of ``block_size``.

        ``block_size``: bytes of a logical block, as the guest is told. ``None``: those of a block
        device of the host, and 512 for a file. Say 4096 for an image of a disk with such blocks:
        its partition table counts in them. A driver that asks for parts of blocks is served all the
        same. Physical block size, alignment and the sizes of fast transfers are told as the host
        has them.
        ``direct``: data goes past the host's page cache (open(2), "O_DIRECT"), straight between
        the disk and guest memory where the kernel can do that. Parts of blocks go through the
        cache all the same, and what a foreign mapping of Xen holds through memory of our own.
        ``incoming``: another back-end may have the image open, and a guest is to come from there.
        The image is locked when the first queue of the guest starts here, and not before. With and
        without it the lock is given up when the last queue stops, after all that was written was
        put on stable storage; a guest whose image somebody else has locked meanwhile does not start
        again. If others have changed the size of the image since then, that of the disk follows.

        Raises ``ValueError`` if it has less than 512 bytes, or a size or block size that cannot be,
        ``OSError`` if it cannot be opened, or, when a ``Backend`` starts it, if somebody else has
        locked it or the file system has no direct I/O.
        """
        self.path = arguments.path("path", path)
        self.direct = arguments.flag("direct", direct)
        self.incoming = arguments.flag("incoming", incoming)
        arguments.flag("read_only", read_only)
        size, blocks = _measured(self.path, read_only=read_only)
        block_size = blocks if block_size is None else _checked_block_size(block_size)
        name = os.fsdecode(self.path)
        if size < SECTOR:
            raise ValueError(
                f"{name} has {size} bytes, and a disk has {SECTOR} at least: "
                "give it some, as with truncate --size 1G"
            )
        if size % block_size:
            raise ValueError(
                f"{name}: its size of {size} bytes is no multiple of block_size, {block_size}"
            )
        super().__init__(
            size=size,
            block_size=block_size,
            read_only=read_only,
            num_queues=num_queues,
            queue_size=queue_size,
            serial=serial,
            max_request_bytes=max_request_bytes,
        )


class NullDisk(_RustDisk):
    """A disk that does nothing, for measuring. Reads leave the driver's memory as it is; what a Xen
    guest grants for one request they may zero.
    """

    served_as = "null"


def _measured(path: str | bytes, *, read_only: bool) -> tuple[int, int]:
    """The bytes of an image, and of a logical block of what it is kept on."""
    fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        return size, _host_block(fd) if stat.S_ISBLK(os.fstat(fd).st_mode) else SECTOR
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def _host_block(fd: int) -> int:
    """BLKSSZGET of linux/fs.h: an int in the machine's own byte order."""
    import fcntl  # Not at the top: only block devices need it.

    return int.from_bytes(fcntl.ioctl(fd, BLKSSZGET, bytes(4)), sys.byteorder)


def check_serial(serial: str) -> None:
    """``TypeError`` or ``ValueError`` for what is no serial number."""
    if not isinstance(serial, str):
        raise TypeError(f"serial is text, not {serial!r}")
    try:
        count = len(serial.encode())
    except UnicodeEncodeError:
        text = "serial is text in UTF-8, and holds bytes that are none"
        raise ValueError(f"{text}: {serial!a}") from None
    if count > MAX_SERIAL:
        raise ValueError(f"serial has at most {MAX_SERIAL} bytes, not {count}: {serial!r}")


def _checked_block_size(block_size: int) -> int:
    number = arguments.number("block_size", block_size, "a number of bytes, as 4096")
    if not SECTOR <= number <= MAX_BLOCK or number & (number - 1):
        raise ValueError(f"block_size is a power of two from {SECTOR} to {MAX_BLOCK}, not {number}")
    return number


def _check_size(size: int, block_size: int) -> None:
    bytes_ = arguments.number("size", size, "a whole number of bytes")
    if not 0 < bytes_ < 1 << 63:
        raise ValueError(f"size is {block_size} to 2**63 - {block_size} bytes, not {size}")
    if bytes_ % block_size:
        unit = f"{SECTOR} bytes" if block_size == SECTOR else f"block_size, {block_size} bytes"
        raise ValueError(f"size is a multiple of {unit}, not {size}")
