"""The Rust core. Its classes for users are exported by ``vhost_user``."""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Literal, Self, TypeAlias, TypedDict, Unpack, final, overload

from typing_extensions import Buffer, disjoint_base

from .devices.base import Device
from .xen import SentDesign
from .xen_region import XenRegion

__all__ = [
    "Backend",
    "BlockBatch",
    "BlockRequest",
    "Frontend",
    "LoadReport",
    "Metrics",
    "Queue",
    "Relay",
    "Request",
    "VirtioBlkDriver",
    "XenGuest",
    "__version__",
    "check_metrics_address",
    "end_logging",
    "end_with_parent",
    "log_warning",
    "set_total_copy_budget",
]

__version__: str

def end_logging() -> None: ...
def end_with_parent() -> None: ...
def log_warning(text: str, /) -> None: ...
def check_metrics_address(text: str, /) -> None: ...
def set_total_copy_budget(size: int, /) -> int: ...

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
    def sequence(self) -> int:
        """Its number among those that were taken from its queue since a driver started the device,
        from 0 on. One that comes again after a crash has the number that it had at first (QEMU
        "Vhost-user Protocol", "Inflight I/O tracking"); without a record of requests in flight
        numbers begin with 0 whenever the ring starts. ``StaleRequestError`` once the request was
        answered.
        """
    @property
    def resubmitted(self) -> bool:
        """Whether a process that had it died, or left it unanswered, before it gave it back: it may
        have been carried out already, wholly or in part. ``StaleRequestError`` once the request was
        answered.
        """
    @property
    def durable(self) -> bool:
        """Whether a write must be on stable storage before it is completed: the driver has turned
        the write cache off, or was not offered one. ``pwritev`` and ``submit`` see to it, what is
        answered with its batch is flushed with it, and what is answered later, since it was
        deferred or a view of it was kept, is flushed when it is answered.
        """
    @property
    def unmap(self) -> bool:
        """write_zeroes: whether the space may be given up."""
    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """discard, write_zeroes: all ranges, as (offset, length) in bytes."""
    @property
    def data(self) -> memoryview:
        """The data as one view: writable for a read, read-only for a write. The driver's memory
        if it is in one piece there, else a copy that is carried over with the answer; a copy too
        where the memory is granted pages, unless ``XenOptions`` says ``raw_views``.
        """
    @property
    def segments(self) -> tuple[memoryview, ...]:
        """The data's pieces as they lie in the driver's memory; those of the copy if ``data`` has
        made one, or granted pages need one. Of a read in several pieces that were handed out as
        they lie ``data`` is a ``BufferError``.
        """
    def copy_from(self, src: Buffer, start: int | None = None, /) -> int:
        """Copies ``src`` to a read's data, or with ``start`` what the read asks for from there on;
        returns how many bytes. ``ValueError`` if they are too many, or ``src`` ends before.
        """
    def copy_to(self, dst: Buffer, start: int | None = None, /) -> int:
        """Copies a write's data to ``dst``, as far as both go, or with ``start`` all of it to
        there; returns how many bytes. ``ValueError`` if ``dst`` ends before.
        """
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
    def fail(self, error: int | BaseException = 5) -> None:
        """Answers: failed, for this reason: an errno, or an exception. Each kind is logged as a
        WARNING once, then with a number for its repeats, and is the ``__cause__`` in tests.

        The driver hears of EOPNOTSUPP, ENOSYS and ``NotImplementedError`` as "unsupported", of all
        else as an I/O error. An exception that is given while views of the data are there loses
        its ``__traceback__``, whose frames would keep them, and so do those that it was raised
        from. ``StaleRequestError`` if the request was answered or its queue has stopped;
        ``ValueError`` for a number outside 1 to 4095 and ``TypeError`` for anything else, and the
        request stays open.
        """
    def defer(self) -> Self:
        """Keeps the request past ``on_batch``: answer it later, from any thread. Dropped without
        an answer it fails, which is logged as a WARNING.
        """

@final
class BlockBatch(Sequence[BlockRequest]):
    """The requests that ``on_batch`` got, in the order in which the driver made them available.

    A sequence; and what moves the data of all its reads or all its writes at once, which costs
    next to nothing for each. The driver has no order in mind for requests in flight.
    """

    @overload
    def __getitem__(self, index: int, /) -> BlockRequest: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[BlockRequest]: ...
    def __len__(self) -> int: ...
    def index(self, request: object, /) -> int:  # type: ignore[override]
        """Where ``request`` stands. ``ValueError`` if it is not of this batch."""
    def count(self, request: object, /) -> int:
        """1 if ``request`` is of this batch, else 0."""
    def copy_from(self, src: Buffer, /) -> None:
        """Copies to each read its bytes of ``src``, which holds the disk from its first byte on.
        ``ValueError`` if it ends before one of them; nothing is copied then.
        """
    def copy_to(self, dst: Buffer, /) -> None:
        """Copies each write to its place in ``dst``; as ``copy_from``."""
    def preadv(self, fd: int, start: int = 0) -> None:
        """Reads each read's data from a file that holds the disk from byte ``start`` on, with the
        interpreter given up. A read that fails is answered so and the others go on. What lies
        past the end of the file reads as zeroes.
        """
    def pwritev(self, fd: int, start: int = 0) -> None:
        """Writes each write's data to a file, as ``preadv``."""

@final
class Request:
    """One descriptor chain of any device."""

    @property
    def readable(self) -> memoryview:
        """What the driver wrote, read-only: its own memory or a copy, as ``BlockRequest.data``."""
    @property
    def writable(self) -> memoryview:
        """What the device may fill: the driver's memory, or a copy that is carried over at the
        end, as ``BlockRequest.data``.
        """
    @property
    def sequence(self) -> int:
        """Its number among those that were taken from its ring, as ``BlockRequest.sequence``."""
    @property
    def resubmitted(self) -> bool:
        """Whether a process that had it died before it gave it back, as
        ``BlockRequest.resubmitted``.
        """
    def complete(self, written: int | None = None) -> None:
        """Gives the request back with ``written`` bytes of ``writable`` filled; all by default.
        ``StaleRequestError`` if it went back before or its queue has stopped, ``ValueError`` if
        ``written`` is negative or more than ``writable`` has.
        """
    def defer(self) -> Self:
        """Keeps the request past ``on_queue``: complete it later, from any thread. Dropped before
        that it goes back with no byte written, which is logged as a WARNING.
        """

@final
class Queue:
    """One virtqueue: ``on_queue`` iterates over what it has, ``take`` and ``send`` work at any
    time.
    """

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
        """Takes up to ``max`` requests of those that were found. ``ValueError`` for a negative
        number.
        """
    def take(self) -> Request | None:
        """Takes the next request out of the ring: in any callback and from any thread. It is kept
        until it is completed. None if there is none, or the queue does not run.
        """
    def send(self, *parts: Buffer, max_buffers: int = 1, count_at: int | None = None) -> int:
        """Puts ``parts``, one behind the other, into the driver's next buffers, and publishes these
        together: wholly or not at all. In a callback they are published when it returns, with all
        else that it has sent and completed; from other threads at once.

        Returns how many buffers that took. 0: there are not enough of them now, and ``on_buffers``
        tells when there are more; or the queue does not run.

        ``max_buffers``: more than one for drivers that take data in several buffers (a network
        device's with VIRTIO_NET_F_MRG_RXBUF: VIRTIO 1.3, "Processing of Incoming Packets").
        ``count_at``: where in the data the number of buffers is written, as 2 little-endian bytes.

        ``GuestError`` if the data does not fit however long one waits: more bytes than the next
        ``max_buffers`` buffers have, or than all buffers of a full ring. ``ValueError`` if there
        is no part (``b""`` is data of no byte), ``max_buffers`` is not 1 to 65535 or ``count_at``
        is past the data; ``TypeError`` for a part that is no buffer of bytes.
        """

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
        copy_budget: int,
        any_memory_file: bool,
        on_error: str,
        label: str,
        measured: bool,
        expose: tuple[str, bool] | None,
        xen: tuple[str, int | None, int | None, bool] | None,
        guest: XenGuest | None,
    ) -> Self: ...
    @property
    def state(self) -> _State: ...
    def wait_running(self, timeout: float | None) -> bool: ...
    def stop(self, drain: float, *, flush: float = 2.0) -> list[tuple[int, int]]: ...
    def request_stop(self, drain: float | None = None, /) -> None: ...
    def stopped_fd(self) -> int: ...
    def resize(self, size: int, /) -> None: ...
    @property
    def status(self) -> int: ...
    def set_config(self, config: bytes, /, *, notify: bool) -> None: ...
    def take_failure(self) -> BaseException | None: ...
    def stats(self) -> list[list[int]]: ...
    def counters(self) -> tuple[int, int, int, int, int, int]: ...
    def metrics(self) -> Metrics | None: ...
    def pause(self) -> bool: ...
    def resume(self) -> bool: ...
    @property
    def is_paused(self) -> bool: ...
    def metrics_address(self) -> str | None: ...

@final
class Metrics:
    """What was measured of a back-end, at the moment of ``Backend.metrics()``.

    Times are of requests in batches that were timed: all of them where a batch takes 10
    microseconds or more, and every second to sixteenth where they are shorter.
    """

    @property
    def requests(self) -> int:
        """Requests given back to the driver, failed ones among them."""
    @property
    def errors(self) -> int:
        """Requests that failed, as ``QueueStats.errors`` counts them."""
    @property
    def bytes(self) -> int:
        """Bytes of data of those that did not fail."""
    @property
    def bytes_read(self) -> int:
        """Bytes that were read from a disk; 0 of any other device."""
    @property
    def bytes_written(self) -> int:
        """Bytes that were written to a disk; 0 of any other device."""
    @property
    def in_flight(self) -> int:
        """Requests that were taken from their rings and not given back, now."""
    @property
    def oldest_in_flight(self) -> float:
        """Seconds that the oldest of them has been that; 0.0 without one. Buffers that a device
        takes by itself are not looked at."""
    @property
    def names(self) -> list[str]:
        """The names that ``quantile`` takes: "request" (all operations), the operations of a disk
        ("read", "write", "flush", "discard", "write_zeroes", "get_id", "other"), the stages of a
        batch ("ring", "gil_wait", "callback", "backend", "publish"), and "batch_size"."""
    def quantile(self, name: str, q: float, /) -> float:
        """The value that the part ``q`` (0.0 to 1.0) of all values does not exceed, to a quarter of
        itself: in seconds, or for "batch_size" in requests. NaN if there was none yet.

        Raises ``ValueError`` for a name that there is not, and for another ``q``.
        """
    def prometheus(self) -> str:
        """All of it in the text format of Prometheus ("Exposition formats", version 0.0.4)."""

class _FrontendOptions(TypedDict, total=False):
    timeout: float
    xen: bool
    packed: bool
    in_order: bool

class _BlkOptions(TypedDict, total=False):
    memory: int
    num_queues: int
    queue_size: int
    timeout: float
    guest: XenGuest | None
    packed: bool
    in_order: bool
    inflight: bool
    dirty_log: bool
    iommu: bool

@disjoint_base
class Frontend:
    """A connection to a back-end, negotiated and with no ring.

    One thread uses it at a time; others wait. In the main thread every call hears signals while it
    waits: what a handler raises, as that of Ctrl-C does, ends the call. A constructor leaves
    nothing then, and ``reconnect`` a connection that is closed. After any other call the
    connection can be used on: what the call has asked of the back-end may be carried out or not,
    and is waited for before anything else is asked. A handler that uses the connection itself gets
    a ``VhostUserError``.
    """

    def __new__(
        cls,
        socket: str | PathLike[str] | None = None,
        *,
        fd: int | None = None,
        timeout: float = 5.0,
        xen: bool = False,
        packed: bool = False,
        in_order: bool = False,
    ) -> Self:
        """Connects to ``socket``, or takes over a connected socket ``fd``, and negotiates.
        ``xen``: XEN_MMAP too, for regions of Xen domains. ``packed``, ``in_order``: RING_PACKED
        and IN_ORDER too; ``NegotiationError`` if the back-end does not offer them.

        ``OSError`` if nobody answers in ``timeout`` seconds, which also limits each later
        exchange; ``NegotiationError``, ``ProtocolError``.
        """
    @classmethod
    def connect(cls, socket: str | PathLike[str], **options: Unpack[_FrontendOptions]) -> Self:
        """Connects to ``socket``; ``options`` as the class takes them."""
    @property
    def features(self) -> int:
        """The feature bits that both ends accepted."""
    @property
    def offered_features(self) -> int:
        """The feature bits that the back-end offers."""
    @property
    def protocol_features(self) -> int:
        """The protocol feature bits that both ends accepted."""
    @property
    def offered_protocol_features(self) -> int:
        """The protocol feature bits that the back-end offers."""
    @staticmethod
    def feature_names(bits: int, device_id: int | None = None) -> list[str]:
        """The standard's names of feature bits, lowest first: with those of a device type (VIRTIO
        1.3, "Device Types") if its number is given. ``bit N`` for one without a name.

        ``ValueError`` for a negative number or one of more than 64 bits.
        """
    @staticmethod
    def protocol_feature_names(bits: int) -> list[str]:
        """The same of protocol feature bits: QEMU "Vhost-user Protocol", "Protocol features"."""
    @property
    def num_queues(self) -> int | None:
        """Virtqueues of the device; None if the back-end does not tell. Of a network device most
        back-ends count pairs of queues, DPDK's and those of this package among them.
        """
    @property
    def max_mem_slots(self) -> int | None:
        """Memory regions that the back-end takes; None if it does not tell."""
    @property
    def peer(self) -> str:
        """Who is at the other end."""
    def config(self, offset: int, length: int) -> bytes:
        """Bytes of the device's configuration space."""
    def save_state(self, *, most: int = 536870912) -> bytes:
        """Fetches the state of the device, for ``load_state`` at another back-end of its kind.

        SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE of QEMU "Vhost-user Protocol", "Migrating
        back-end state". The queues of a ``VirtioBlkDriver`` stop before, and start again where they
        stood. ``most``: bytes after which it is given up.

        ``NegotiationError`` if the back-end does not offer it, ``ProtocolError`` if it refuses or
        fails, ``ValueError`` if there are more bytes. The back-end's log says why.
        """
    def load_state(self, state: Buffer, /) -> None:
        """Gives the device a state that ``save_state`` has returned. Raises as that does."""
    def set_xen_memory(
        self, regions: Sequence[XenRegion], *, design: SentDesign = "merged"
    ) -> None:
        """Tells the back-end of all guest memory: SET_MEM_TABLE with up to 32 regions of Xen
        domains. It replaces what was told before.

        ``design``: flags and domain stand in each region, 32 bits each ("merged": QEMU "Vhost-user
        Protocol", "Memory region description") or 64 ("review"), or in a message that is sent
        before ("message"), so that all regions have the same.
        ``MappingError`` if the back-end refuses it; ``ValueError`` if the message has no room for
        the numbers; ``NegotiationError`` without ``xen=True``.
        """
    def add_xen_region(self, region: XenRegion, *, design: SentDesign = "merged") -> None:
        """Tells the back-end of one more region: ADD_MEM_REG. Else as ``set_xen_memory``."""
    def remove_xen_region(self, region: XenRegion, *, design: SentDesign = "merged") -> None:
        """Takes a region back: REM_MEM_REG. When this returns nothing of it is mapped any more.
        Else as ``set_xen_memory``.
        """
    def reconnect(self) -> Self:
        """Closes the connection and makes a new one to the same socket, with fresh rings."""
    def close(self) -> None:
        """Stops the rings and closes the connection. If a call was interrupted and the back-end is
        not done with it, the rings are not stopped: the connection closes at once.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

class VirtioBlkDriver(Frontend):
    """A disk at the other end of the socket: memory, rings and requests."""

    def __new__(
        cls,
        socket: str | PathLike[str] | None = None,
        *,
        fd: int | None = None,
        memory: int = 67108864,
        num_queues: int = 1,
        queue_size: int = 128,
        timeout: float = 5.0,
        guest: XenGuest | None = None,
        packed: bool = False,
        in_order: bool = False,
        inflight: bool = False,
        dirty_log: bool = False,
        iommu: bool = False,
    ) -> Self:
        """As ``Frontend``, and starts ``num_queues`` rings in ``memory`` bytes of its own, or in
        all the memory of ``guest``, a ``vhost_user.testing.XenGuest``. ``queue_size``: entries of
        each, a power of two, with ``packed`` any number to 32768.

        ``inflight``: keeps a record of the requests in flight (INFLIGHT_SHMFD;
        ``NegotiationError`` if the back-end does not offer it). When the back-end is gone in the
        middle of a call, the driver then connects to ``socket`` again, in ``timeout`` seconds, and
        the next back-end finishes what was in flight: the call only takes longer. QEMU
        "Vhost-user Protocol", "Inflight I/O tracking".

        ``dirty_log``: has the back-end note the pages of memory that it writes to, as while a
        guest moves (LOG_ALL; ``NegotiationError`` if it is not offered). It shows what that costs:
        nothing reads the log.

        ``iommu``: puts the device behind an IOMMU (ACCESS_PLATFORM; ``NegotiationError`` if the
        back-end does not offer it): rings and buffers are named by I/O virtual addresses, which the
        back-end has to have translated. The data of each request are mapped for it and taken away
        after it, and the next request's stand at the same addresses, in other memory; every other
        translation is told before the request, the rest are asked for. QEMU "Vhost-user Protocol",
        "IOMMU support". During ``run_load`` all of memory is mapped.
        """
    @classmethod
    def connect(  # type: ignore[override]
        cls, socket: str | PathLike[str], **options: Unpack[_BlkOptions]
    ) -> Self:
        """Connects to ``socket``; ``options`` as the class takes them."""
    @property
    def size(self) -> int:
        """Bytes of the disk."""
    @property
    def read_only(self) -> bool:
        """Whether the disk is read-only."""
    @property
    def reconnections(self) -> int:
        """How often the driver has gone on with another back-end, with ``inflight``."""
    def pread(self, n: int, offset: int) -> bytes:
        """Reads ``n`` bytes at ``offset``, both multiples of 512. ``RequestError`` if the device
        fails it.
        """
    def pwrite(self, data: Buffer, offset: int) -> int:
        """Writes ``data`` at ``offset``, both multiples of 512; returns its length."""
    def flush(self) -> None:
        """Has all writes put on stable storage."""
    def discard(self, offset: int, length: int) -> None:
        """Says that these bytes are no longer needed."""
    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Makes these bytes zeroes; with ``unmap`` their space may be given up."""
    def set_writeback(self, on: bool) -> None:
        """Turns the device's write cache on or off."""
    def serial(self) -> str:
        """The disk's serial number."""
    def wait_config_change(self, timeout: float = 5.0) -> bool:
        """Waits until the device says that its configuration has changed; False if it does not in
        ``timeout`` seconds. ``size`` is up to date then.
        """
    def start_dirty_log(self) -> None:
        """Has the back-end note in a log which pages of guest memory it writes to, from now on:
        SET_LOG_BASE, LOG_ALL and SET_VRING_ADDR of QEMU "Vhost-user Protocol", "Migration". A log
        that was started before is replaced.

        ``NegotiationError`` if the back-end does not offer it.
        """
    def dirty_pages(self) -> list[int]:
        """The numbers of the pages, of 4096 bytes, that the back-end has noted since the last call,
        in order. What was written to them before the call can be read after it. After
        ``stop_queues`` all is noted. ``ValueError`` without ``start_dirty_log``.
        """
    def stop_dirty_log(self) -> None:
        """Has nothing noted any more."""
    @property
    def iommu_counts(self) -> tuple[int, int, int] | None:
        """With ``iommu``: how many translations the back-end has asked for, how many it was told
        before it did, and how many were taken away. None without.
        """
    def guest_memory(self, address: int, length: int) -> bytes:
        """A copy of ``length`` bytes of guest memory at ``address``; it has ``memory`` bytes from
        address 0 on. ``ValueError`` outside.
        """
    def stop_queues(self) -> list[int]:
        """Stops all queues, as a machine does that pauses or is about to migrate; returns where
        each of them stood. Requests are a ``ValueError`` until ``start_queues``.
        """
    def start_queues(self) -> None:
        """Starts the queues again where they stood."""
    def prepare_load(self, seed: int = 1) -> None:
        """Writes a pattern to the whole disk, for ``run_load`` with the same ``seed`` to check."""
    def run_load(
        self,
        access: Literal["read", "write", "randread", "randwrite"] = "randread",
        *,
        block_bytes: int = 4096,
        depth: int = 32,
        seconds: float | None = None,
        ops: int | None = None,
        warm_up: float = 0.0,
        polling: bool = False,
        cpus: Sequence[int] | None = None,
        verify: Literal["none", "sampled", "all"] | None = None,
        seed: int = 1,
    ) -> LoadReport:
        """Runs a closed-loop load of ``depth`` requests in flight on each queue and measures it.

        For ``seconds``, one by default, or ``ops`` requests. ``polling``: the driver looks at its
        rings all the time instead of sleeping. ``cpus``: processors for its threads, in turns.
        ``verify``: which reads are checked against the pattern of ``prepare_load(seed)``: one in 64
        ("sampled") or all. If left out, one in 64 if this driver has prepared the whole disk with
        this ``seed`` and written nothing else since, else none. ``ValueError`` if reads are to be
        checked and it has not.
        """

@final
class LoadReport:
    """What came of a load."""

    @property
    def ops(self) -> int:
        """Requests answered."""
    @property
    def bytes(self) -> int:
        """Bytes moved."""
    @property
    def elapsed(self) -> float:
        """Seconds."""
    @property
    def iops(self) -> float:
        """Requests a second."""
    @property
    def errors(self) -> int:
        """Requests that failed."""
    @property
    def verified(self) -> int:
        """Requests whose data was checked."""
    @property
    def mismatches(self) -> int:
        """Requests whose data was wrong."""
    @property
    def first_mismatch(self) -> int | None:
        """Where on the disk the first wrong byte is."""
    @property
    def kicks(self) -> int:
        """Notifications sent to the back-end."""
    @property
    def calls(self) -> int:
        """Notifications from the back-end."""
    @property
    def p50(self) -> float:
        """Half of the requests took no longer, in seconds."""
    @property
    def p99(self) -> float:
        """99 of 100 took no longer, in seconds."""

@disjoint_base
class XenGuest:
    """A domain on a hypervisor that is not there; see ``vhost_user.testing.XenGuest``."""

    def __new__(cls, flags: int, domain: int, *, design: SentDesign, memory: int) -> Self: ...
    @property
    def guest_address(self) -> int:
        """First address of its memory in descriptors: a guest address, or one for grants."""
    @property
    def user_address(self) -> int:
        """Where its memory is mapped for its driver, in this process."""
    @property
    def memory(self) -> int:
        """Bytes of its memory."""
    def fileno(self) -> int:
        """The hypervisor's device by which its memory is mapped. It is closed with the guest."""
    def in_use(self) -> list[int]:
        """Its pages that a back-end has mapped, lowest first: grant references, or frame numbers
        if its memory is mapped by frames.
        """

_NotTaken: TypeAlias = tuple[Literal["lost", "refused"], str] | None

@final
class Relay:
    """Keeps a front-end's connection while back-ends come and go; used by ``vhost-user hold``."""

    def __new__(
        cls,
        *,
        listen: str | PathLike[str] | None = None,
        dial: str | PathLike[str] | None = None,
        fd: int | None = None,
        mode: int = 0o600,
        group: int | None = None,
    ) -> Self:
        """Opens the socket of front-ends. ``OSError`` if it cannot be had."""
    def store_at(self, address: str, /) -> None:
        """Has the service manager that listens for notifications at ``address`` keep what the next
        keeper needs. ``OSError`` if that is no address.
        """
    def restore(self, fd: int, generation: int, /) -> str | None:
        """Takes up what a former keeper has had kept, by ``fd``. None if the front-end is there
        again; else why not.
        """
    def served_by(self, process: int, /) -> None:
        """Says which process, by its descriptor, the back-end is that comes next."""
    def not_stored(self) -> str | None:
        """Why nothing is kept any more for the next keeper; told once."""
    def run(
        self, wake: int, /
    ) -> tuple[Literal["woken", "came", "left", "lost", "held", "over"], str]:
        """Passes messages, until something happens or ``wake`` is readable."""
    def attach(self, fd: int, /) -> _NotTaken:
        """Takes a back-end in place of one that is dead or parked. None if it goes on."""
    def prepare(self, fd: int, /) -> _NotTaken:
        """Takes a back-end that is to follow. None if it can."""
    def park(self) -> _NotTaken:
        """Has the present back-end stop all rings, and hangs up. None if it has."""
    def take_over(self) -> _NotTaken:
        """Goes on with the one that was prepared. None if it does."""
    def hang_up(self) -> None:
        """Ends the front-end's connection and the back-end's."""
    @property
    def has_frontend(self) -> bool:
        """Whether there is a front-end."""
    @property
    def runs(self) -> bool:
        """Whether the driver uses a ring."""
    @property
    def records(self) -> bool:
        """Whether the back-end records requests in flight."""
    @property
    def hidden(self) -> str | None:
        """Protocol features of the back-end that no front-end is shown."""
