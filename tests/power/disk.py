"""The test's handle on a disk that a power cut can meet at any moment."""

import os
import pickle
import struct
from pathlib import Path

from hostile.fuse import Mounted

from .disk_server import State

TESTS = Path(__file__).parents[1]
SIZE = 1 << 20


class VolatileDisk(Mounted):
    """An image of `SIZE` zero bytes at `path`."""

    def __init__(self, folder: Path, *, writeback: bool) -> None:
        program = (
            f"import sys; sys.path.insert(0, {str(TESTS)!r}); sys.argv.append('{writeback:d}')"
        )
        words = ["-c", f"{program}; from power.disk_server import main; main()"]
        super().__init__(words, folder, SIZE)
        self.writeback = writeback
        os.close(self.cached)
        os.close(self.direct)

    def state(self) -> State:
        """What a power cut now would meet."""
        self._control.send(b"?")
        (length,) = struct.unpack("<Q", self._receive(8))
        state: State = pickle.loads(self._receive(length))
        return state

    def _receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            more = self._control.recv(length - len(received))
            assert more, "the file system has ended"
            received += more
        return bytes(received)
