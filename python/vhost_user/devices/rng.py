"""The entropy device: VIRTIO 1.3, "Entropy Device".

A request is one buffer that the device fills::

    writable: | random bytes |
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from .base import MAX_QUEUE_SIZE, Device

if TYPE_CHECKING:
    from .. import Queue

MAX_BYTES = 1 << 16
"""Most bytes of one answer: a driver that asks for gigabytes gets less, as the standard allows."""


MAX_REQUEST = 1 << 20
"""Bytes of a request that are taken at all: no driver asks for as many."""


class Rng(Device):
    """Gives the guest random bytes from the host's own source."""

    device_id: ClassVar[int] = 4

    transitional: ClassVar[bool] = True

    def __init__(
        self, *, queue_size: int = MAX_QUEUE_SIZE, max_request_bytes: int = MAX_REQUEST
    ) -> None:
        """``queue_size``, ``max_request_bytes``: as ``Device`` takes them."""
        super().__init__(queue_size=queue_size, max_request_bytes=max_request_bytes)

    def on_queue(self, queue: Queue, /) -> None:
        """Fills each request."""
        for request in queue:
            target = request.writable
            count = min(len(target), MAX_BYTES)
            target[:count] = os.urandom(count)
            target.release()
            request.complete(count)
