"""What a back-end has done, in numbers."""

from __future__ import annotations

from typing import NamedTuple


class QueueStats(NamedTuple):
    """What one queue has done since its back-end started."""

    requests: int
    """Requests given back to the driver, failed ones among them."""

    bytes: int
    """Bytes of data of those that did not fail: what the driver sent, and what was written for it.
    Of a disk without header and status, so that 10 reads of 4096 bytes are 40960."""

    errors: int
    """Requests that failed: an I/O error or "unsupported" of a disk; of any device what was refused
    before it saw it, dropped unanswered, or came back too late. That a device answers with an error
    of its type is not known here."""

    kicks: int
    """Notifications that came from the driver. It sends none while its requests are looked for."""

    calls: int
    """Notifications that were sent to the driver."""

    in_flight: int
    """Requests that were taken from the ring and not given back, now."""
