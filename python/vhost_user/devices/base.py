"""The base of all devices, and the generic one: a virtio type that nobody has written yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from ..errors import VhostUserError

if TYPE_CHECKING:
    from .. import Queue

MAX_QUEUES = 256
"""More virtqueues than any device type has; the protocol numbers them with 8 bits."""

MAX_QUEUE_SIZE = 32768
"""VIRTIO 1.3, "Split Virtqueues": the largest ring."""

MAX_CONFIG = 256
"""vhost-user, "Virtio device config space": the most that a message carries."""


class Served(Protocol):
    """What a device may ask of the back-end that serves it."""

    @property
    def state(self) -> str:
        """Where it stands; "stopped" is final."""

    def set_config(self, config: bytes, /) -> None:
        """Replaces the configuration space and tells the front-end."""

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

    served_as: ClassVar[Literal["queue", "block", "file", "null"]] = "queue"
    """Who moves the data; set by the classes of this package."""

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
        queue_size: int = 256,
        features: int = 0,
        config: bytes = b"",
        receive_queues: tuple[int, ...] = (),
    ) -> None:
        """A device with ``num_queues`` rings of at most ``queue_size`` entries, a power of two.

        ``features``: the device type's own feature bits; those of rings and transport are added.
        ``config``: the configuration space, as the driver reads it, at most 256 bytes.
        ``receive_queues``: queues that carry data to the driver, such as the even ones of a network
        device. The device takes their buffers when it has something to put into them, with
        ``Queue.send`` or ``Queue.take``; ``on_queue`` is not called for them, ``on_buffers`` is.
        """
        if not 1 <= num_queues <= MAX_QUEUES:
            raise ValueError(f"num_queues is 1 to {MAX_QUEUES}, not {num_queues}")
        if not 2 <= queue_size <= MAX_QUEUE_SIZE or queue_size & (queue_size - 1):
            raise ValueError(
                f"queue_size is a power of two from 2 to {MAX_QUEUE_SIZE}, not {queue_size}"
            )
        if not 0 <= features < 1 << 64:
            raise ValueError(f"features has 64 bits, {features:#x} has others")
        if len(config) > MAX_CONFIG:
            raise ValueError(f"config has at most {MAX_CONFIG} bytes, not {len(config)}")
        receive = sorted(set(receive_queues))
        if receive and not 0 <= receive[0] <= receive[-1] < num_queues:
            raise ValueError(f"receive_queues are 0 to {num_queues - 1}, not {receive}")
        self.num_queues = num_queues
        self.receive_queues = receive
        self.queue_size = queue_size
        self.features = features
        self.config = bytes(config)

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
            raise VhostUserError(f"{type(self).__name__} has queues once a Backend serves it")
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

    def on_disconnect(self) -> None:
        """The front-end is gone, and its memory with it."""

    def write_config(self, offset: int, data: bytes, /) -> None:
        """Takes a driver's write to the configuration space; an exception refuses it.

        The default refuses all.
        """
        raise NotImplementedError(f"{type(self).__name__}.write_config")

    def notify_config(self, config: bytes) -> None:
        """Replaces the configuration space; if served, tells the driver that it has changed."""
        if len(config) > MAX_CONFIG:
            raise ValueError(f"config has at most {MAX_CONFIG} bytes, not {len(config)}")
        self.config = bytes(config)
        if self.served_by is not None:
            self.served_by.set_config(self.config)
