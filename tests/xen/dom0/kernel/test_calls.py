"""The count of calls counts."""

from __future__ import annotations

import ctypes
import os
import platform
from collections import Counter

from ..calls import GrantCalls
from ..gntdev import Granted, Piece, copy_from
from ..guest import FRAMES, Guest

IO_SUBMIT = {"x86_64": 209, "aarch64": 2}[platform.machine()]
"""By its number, as the C library has no function for it."""


def signal() -> None:
    """Asks for asynchronous I/O, as a back-end does to signal a driver; here for none at all."""
    ctypes.CDLL(None).syscall(IO_SUBMIT, 0, 0, 0)


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
    with GrantCalls(os.getpid()) as calls:
        Granted(gntdev, guest.domain, [16]).close()
        late = Granted(gntdev, guest.domain, [16])
        signal()
        late.close()
        signal()
    first, second = calls.batches
    assert first == Counter({"map": 2, "unmap": 1, "release": 1, "left": 1})
    assert second == Counter({"unmap": 1, "release": 1})
    guest.grants.revoke(16)
