"""The base of all devices, and the generic one: a virtio type that nobody has written yet."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from .. import arguments
from ..errors import VhostUserError

if TYPE_CHECKING:
    from typing import BinaryIO

    from .. import Queue
    from .state import StateReader

MAX_QUEUES = 256
"""More virtqueues than any device type has; the protocol numbers them with 8 bits."""

MAX_QUEUE_SIZE = 32768
"""VIRTIO 1.3, "Split Virtqueues": the largest ring."""

MAX_CONFIG = 256
"""vhost-user, "Virtio device config space": the most that a message carries."""


MAX_REQUEST = 64 << 20
"""Bytes of a request that a device takes if it does not say: more than any driver asks for."""


OF_BACK_END = ("served_by", "negotiated_features", "_queues")
"""Attributes of a device that its back-end sets."""


class Served(Protocol):
    """What a device may ask of the back-end that serves it."""

    @property
    def state(self) -> str:
        """Where it stands; "stopped" is final."""

    @property
    def status(self) -> int:
        """The device status byte that the front-end passed on last."""

    def set_config(self, config: bytes, /, *, notify: bool) -> None:
        """Replaces the configuration space, and with ``notify`` tells the front-end."""

    def resize(self, size: int, /) -> None:
        """Changes the size of a disk and tells the front-end."""


class Device:
    """A virtio device.

    Subclass it, set ``device_id``, override ``on_queue``::

        class Entropy(vu.Device):
            device_id = 4

            def on_queue(self, queue):
                for request in queue:
                    request.writable[:] = os.urandom(len(request.writable))
                    request.complete()

    One object is served by one back-end at a time.
    """

    device_id: ClassVar[int]
    """The device type's number: VIRTIO 1.3, "Device Types"."""

    thread_safe: ClassVar[bool] = False
    """False: the callbacks of one device never overlap. True: each queue calls when it likes."""

    transitional: ClassVar[bool] = False
    """False: a driver without VERSION_1, which uses the legacy interface, is refused. True: it is
    served as well, on little-endian hosts. That is right only if the requests of the device type
    are the same for both (VIRTIO 1.3, the notes "Legacy Interface" with each type): those of disks
    and of entropy devices are, a network device's have a shorter header."""

    served_as: ClassVar[Literal["queue", "block", "file", "null"]] = "queue"
    """Who moves the data; set by the classes of this package."""

    state_name: ClassVar[str] = ""
    """What ``save`` writes is for devices of this name alone, at most 255 bytes; the name of the
    class if it is empty."""

    state_version: ClassVar[int] = 1
    """Raise it when ``save`` writes something else. A state of a higher version is refused, one of
    a lower one is for ``load`` to tell."""

    served_by: Served | None = None
    """The back-end; set by it."""

    negotiated_features: int = 0
    """The feature bits that the driver accepted; set before ``on_start``."""

    _queues: tuple[Queue, ...] | None = None
    """The handles; set when it is served."""

    def __init__(
        self,
        *,
        num_queues: int = 1,
        queue_size: int = MAX_QUEUE_SIZE,
        features: int = 0,
        config: bytes = b"",
        receive_queues: tuple[int, ...] = (),
        max_request_bytes: int = MAX_REQUEST,
    ) -> None:
        """A device with ``num_queues`` rings of at most ``queue_size`` entries, a power of two.

        The front-end decides how long a ring is, and gives a device up that refuses it: a lower
        ``queue_size`` is for those who want that.
        ``features``: the device type's own feature bits; those of rings and transport are added.
        ``config``: the configuration space, as the driver reads it, at most 256 bytes. With none
        the front-end is offered none; a network device (``device_id`` 1) is best without, as QEMU
        shows its driver what QEMU was told itself, and warns of a back-end that has one.
        ``receive_queues``: queues that carry data to the driver, such as the even ones of a network
        device. The device takes their buffers when it has something to put into them, with
        ``Queue.send`` or ``Queue.take``; ``on_queue`` is not called for them, ``on_buffers`` is.
        ``max_request_bytes``: most bytes of one descriptor chain, both directions together. A
        longer one fails before the device sees it, with a log record: its data would be copied
        where it does not lie in one piece, and a driver may name the same memory again and again.

        The queues of a network device are pairs, and perhaps a control queue: 5 are two pairs
        with one. Front-ends are told how many pairs there are. QEMU counts so; Cloud Hypervisor
        and crosvm count queues, and take half of what they are told for the whole: give the
        device twice as many for these.

        ``TypeError`` for an argument of a wrong type, ``ValueError`` for a number out of range.
        """
        num_queues = arguments.number("num_queues", num_queues, "a number of queues, as 2")
        queue_size = arguments.number("queue_size", queue_size, "a number of entries, as 256")
        features = arguments.number("features", features, "a number, as 1 << 5")
        max_request_bytes = arguments.number(
            "max_request_bytes", max_request_bytes, "a number of bytes, as 1 << 20"
        )
        if not 1 <= num_queues <= MAX_QUEUES:
            raise ValueError(f"num_queues is 1 to {MAX_QUEUES}, not {num_queues}")
        if not 2 <= queue_size <= MAX_QUEUE_SIZE or queue_size & (queue_size - 1):
            raise ValueError(
                f"queue_size is a power of two from 2 to {MAX_QUEUE_SIZE}, not {queue_size}"
            )
        if not 0 <= features < 1 << 64:
            raise ValueError(f"features is a number of 64 bits, not {features:#x}")
        receive = _checked_queues(receive_queues)
        if receive and not 0 <= receive[0] <= receive[-1] < num_queues:
            raise ValueError(f"receive_queues are 0 to {num_queues - 1}, not {receive}")
        if not 1 <= max_request_bytes < 1 << 64:
            raise ValueError(f"max_request_bytes is a positive number, not {max_request_bytes}")
        self.num_queues = num_queues
        self.receive_queues = receive
        self.queue_size = queue_size
        self.features = features
        self._config = _checked_space(config)
        self.max_request_bytes = max_request_bytes

    def __getstate__(self) -> object:
        """What `copy` and `pickle` take: all but the back-end. A copy is served by nobody."""
        state = super().__getstate__()
        own, slots = state if isinstance(state, tuple) else (state, None)
        if isinstance(own, dict):
            own = {name: value for name, value in own.items() if name not in OF_BACK_END}
        return own if slots is None else (own, slots)

    @property
    def config(self) -> bytes:
        """The configuration space: VIRTIO 1.3, "Device Configuration Space".

        Assign to replace it. While the device is served that takes effect at the front-end's next
        read, with no notice to the driver: for what is read on the driver's own account, as an
        answer to what it wrote. ``notify_config`` gives a notice too. Some front-ends read the
        space once and answer the driver from that until a notice comes: QEMU does for disks.

        ``ValueError`` if it is longer than 256 bytes, or while served of another length than
        before: the front-end knows that one. ``VhostUserError`` for a disk, whose space is its
        own.
        """
        return self._config

    @config.setter
    def config(self, config: bytes) -> None:
        self._replace_config(config, notify=False)

    @property
    def status(self) -> int:
        """The device status byte: VIRTIO 1.3, "Device Status Field".

        1 ACKNOWLEDGE, 2 DRIVER, 4 DRIVER_OK, 8 FEATURES_OK, 128 FAILED, as the front-end passed
        them on last (QEMU "Vhost-user Protocol", "VHOST_USER_SET_STATUS"); callbacks see the new
        value. 0 if it passes none on, as crosvm and Cloud Hypervisor, after a reset, and when no
        front-end is there. QEMU also passes 0 on when its machine pauses, and of some device
        types, as entropy or GPIO, never DRIVER_OK.
        """
        return 0 if self.served_by is None else self.served_by.status

    def on_queue(self, queue: Queue, /) -> None:
        """Handles what the driver made available on ``queue``.

        Requests that are not taken from it stay in the ring until the driver's next kick. One
        that is taken and neither completed nor deferred goes back with no byte written, and so do
        all that were not answered when it raises.
        """
        raise NotImplementedError(f"{type(self).__name__}.on_queue")

    @property
    def queues(self) -> tuple[Queue, ...]:
        """The handles of all queues: in any callback and from any thread, while it is served.

        Raises ``VhostUserError`` if it never was.
        """
        if self._queues is None:
            raise VhostUserError(
                f"{type(self).__name__}.queues: no back-end serves this device yet; use it in "
                "on_start or later"
            )
        return self._queues

    def on_buffers(self, queue: Queue, /) -> None:
        """A receive queue has buffers: after it has started, and each time that it has more after
        ``send`` or ``take`` found too few.
        """

    def on_queue_stop(self, queue: Queue, /) -> None:
        """A queue is about to stop: nothing more is taken from it.

        Complete or drop the requests of it that you keep; those that are left are waited for
        (``drain=`` of ``Backend``). Buffers without a readable part that nobody looks at go back
        to the driver unused by themselves.
        """

    def on_start(self) -> None:
        """The first queue of a session has started; ``negotiated_features`` is known."""

    def on_stop(self) -> None:
        """The last queue has stopped."""

    def on_reset(self) -> None:
        """The driver or the front-end has reset the device: forget what a driver has set.

        VIRTIO 1.3, "Device Status Field". Called after ``on_stop``, once for each reset however
        many messages say so, and not when a machine pauses, nor when a front-end leaves:
        ``on_disconnect`` tells that.

        Which it is, is certain where the front-end sends RESET_DEVICE (QEMU 8.2 and newer, at
        each reset) or, having no such message, status 0 (DPDK). QEMU before 8.2, crosvm and Cloud
        Hypervisor say the same at a reset as at a pause. With these it is called, late, just
        before ``on_start``, if a queue starts elsewhere than it stopped, as it does for a new
        driver; if the first queue that starts has had no request and tells nothing, then after
        ``on_start`` and before the first request of a queue that does tell. A driver whose queues
        have had no request at all is taken to go on.
        """

    def save(self, out: BinaryIO, /) -> None:
        """Writes the device's state to ``out``, for ``load`` of the same device elsewhere or later.

        That is what its driver has set or is owed, as the position in a log or the handles of open
        files; neither what the device was made with nor data that stays where it is. Front-ends
        ask for it when the machine is migrated, or its snapshot is taken: QEMU of file systems,
        crosvm of all devices (QEMU "Vhost-user Protocol", "Migrating back-end state"). It is
        offered to them if the class has both this and ``load``.

        No queue runs, and each request has been answered. Nothing is to be given up: if the
        migration fails, or it was a snapshot, the queues start again without a ``load``. ``out`` is
        a file in memory for at most 256 MiB. What this raises is reported, and fails the migration.
        Called on a thread of its own, and like all callbacks never beside another unless the
        device is ``thread_safe``.
        """
        raise NotImplementedError(f"{type(self).__name__}.save")

    def load(self, source: StateReader, /) -> None:
        """Takes a state that ``save`` has written, to its last byte.

        ``source`` is a file in memory: ``source.read(n)``, and ``source.version`` with the
        ``state_version`` of who has saved it. It is whole and undamaged, and of a device with the
        same ``device_id`` and ``state_name``; else this is not called. But whoever carried it may
        have changed it: check what would do harm, and check it all before anything is changed, as
        a device that raises goes on as it is. That, or a byte that was not read, is reported, and
        the machine does not go on here.

        Called before ``on_start``, perhaps before the features are negotiated, and on a thread of
        its own as ``save`` is.
        """
        raise NotImplementedError(f"{type(self).__name__}.load")

    def _save_state(self) -> bytes:
        """What ``save`` writes."""
        from .state import StateWriter  # Not at the top: few devices are asked.

        with StateWriter() as out:
            result: object = self.save(out)  # type: ignore[func-returns-value]
            _returns_nothing("save", result, "out.write(...) the data")
            return out.getvalue()

    def _load_state(self, version: int, state: bytes) -> None:
        """Has ``load`` take a state, all of it."""
        from .state import StateReader

        with StateReader(state, version) as source:
            result: object = self.load(source)  # type: ignore[func-returns-value]
            _returns_nothing("load", result, "raise if it does not fit")
            left = len(state) - source.tell()
        if left:
            raise ValueError(f"load left {left} of {len(state)} bytes unread: they do not fit")

    def on_disconnect(self) -> None:
        """The front-end is gone, and its memory with it."""

    def read_config(self, offset: int, length: int, /) -> bytes:
        """Answers a read of the configuration space: ``length`` bytes from ``offset`` on.

        The default answers from ``config``. Override it where what is read depends on more than
        what was assigned, as on the selection that a driver wrote (VIRTIO 1.3, "Input Device").
        ``config`` still says how long the space is: a read ends within it, and the front-end gets
        zeroes for what it asks for past its end.

        An exception, a wrong length or anything but ``bytes`` is reported, and ``config``
        answered: front-ends give a device up whose configuration they cannot read. So it is when
        another callback has not returned for a second.
        """
        return self.config[offset : offset + length]

    def write_config(self, offset: int, data: bytes, /) -> None:
        """Takes a driver's write to the configuration space; an exception refuses it.

        The default refuses all. ``config`` stays as it is unless it is assigned. QEMU passes on
        the whole space from offset 0, whatever the driver wrote.
        """
        raise NotImplementedError(f"{type(self).__name__}.write_config")

    def notify_config(self, config: bytes) -> None:
        """Replaces the configuration space; if served, tells the driver that it has changed.

        Raises as assigning ``config`` does.
        """
        self._replace_config(config, notify=True)

    def _replace_config(self, config: bytes, *, notify: bool) -> None:
        if self.served_as != "queue":
            raise VhostUserError("a disk's configuration space is its own")
        space = _checked_space(config)
        if self.served_by is not None and self.served_by.state != "stopped":
            self.served_by.set_config(space, notify=notify)
        self._config = space


def _returns_nothing(name: str, result: object, advice: str) -> None:
    """``TypeError`` for a callback that returns something, which would be lost."""
    if result is not None:
        what = type(result).__name__
        raise TypeError(f"{name} returned {what}, where it is to return None: {advice}")


def _checked_queues(numbers: tuple[int, ...]) -> list[int]:
    """The numbers of receive queues, each once and in order."""
    try:
        return sorted({operator.index(number) for number in numbers})
    except TypeError:
        what = "a tuple of queue numbers, as (0,)"
        raise TypeError(f"receive_queues is {what}, not {numbers!r}") from None


def _checked_space(config: bytes) -> bytes:
    """A copy of ``config``, which may be anything of bytes, but no number of them."""
    try:
        space = bytes(memoryview(config))
    except TypeError:
        raise TypeError(f"config is bytes, not {config!r}") from None
    if len(space) > MAX_CONFIG:
        raise ValueError(f"config has at most {MAX_CONFIG} bytes, not {len(space)}")
    return space
