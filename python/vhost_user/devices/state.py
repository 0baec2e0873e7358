"""What a device writes its state to, and reads it from."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_STATE = 256 << 20
"""Bytes of a state, which is held in memory until it is known to be whole."""


class StateWriter(io.BytesIO):
    """A file in memory that takes as many bytes as a state may have."""

    def write(self, data: Buffer, /) -> int:
        """Appends ``data``. ``ValueError`` if the state would have more than 256 MiB."""
        end = self.tell() + memoryview(data).nbytes
        if end > MAX_STATE:
            raise ValueError(f"a state has at most {MAX_STATE} bytes, this one {end} by now")
        return super().write(data)


class StateReader(io.BytesIO):
    """A state, as a file in memory: ``read(n)`` returns the next ``n`` bytes."""

    def __init__(self, state: bytes, version: int) -> None:
        """``version``: the ``state_version`` of the device that has saved it."""
        super().__init__(state)
        self.version = version
        """The ``state_version`` of the device that has saved it: that of this device, or a lower
        one."""
