"""The count of calls counts."""

from __future__ import annotations

import os
from collections import Counter

from ..calls import GrantCalls
from ..gntdev import Granted, Piece, copy_from
from ..guest import FRAMES, Guest


def test_each_call_of_the_grant_device_is_counted(guest: Guest, gntdev: int) -> None:
    guest.grants.grant(16, FRAMES[0])
    with GrantCalls(os.getpid()) as calls:
        Granted(gntdev, guest.domain, [16]).close()
        Granted(gntdev, guest.domain, [16, 16]).close()
        copy_from(gntdev, guest.domain, [Piece(16, 0, 8)])
    assert calls.counts == {"map": 2, "unmap": 2, "release": 2, "copy": 1}
    guest.grants.revoke(16)


def test_what_is_mapped_when_the_driver_is_told_is_seen(guest: Guest, gntdev: int) -> None:
    guest.grants.grant(16, FRAMES[0])
    event = os.eventfd(0)
    with GrantCalls(os.getpid()) as calls:
        Granted(gntdev, guest.domain, [16]).close()
        late = Granted(gntdev, guest.domain, [16])
        os.eventfd_write(event, 1)
        late.close()
        os.eventfd_write(event, 1)
    os.close(event)
    first, second = calls.batches
    assert first == Counter({"map": 2, "unmap": 1, "release": 1, "left": 1})
    assert second == Counter({"unmap": 1, "release": 1})
    guest.grants.revoke(16)
