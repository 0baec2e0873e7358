"""A RAM disk: one method for each kind of request."""

import vhost_user as vu


class RamDisk(vu.BlockDevice):
    """A disk in this process's memory, gone when the process ends."""

    def __init__(self, size: int) -> None:
        super().__init__(size=size)
        self.mem = memoryview(bytearray(size))

    def read(self, offset: int, buf: memoryview) -> None:
        """Fills ``buf``, the driver's own memory, from ``offset`` on."""
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview) -> None:
        """Keeps what is in ``buf``."""
        self.mem[offset : offset + len(buf)] = buf


if __name__ == "__main__":
    vu.serve(RamDisk(64 << 20), socket="ram.sock")
