"""A disk that is larger than any memory, because its content is computed."""

import struct

import vhost_user as vu


class Numbered(vu.BlockDevice):
    """A read-only disk on which each 8-byte word holds its own offset, little endian."""

    def __init__(self, size: int = 1 << 40) -> None:
        super().__init__(size=size, read_only=True)

    def read(self, offset: int, buf: memoryview) -> None:
        """Computes what stands from ``offset`` on."""
        end = offset + len(buf)
        buf[:] = struct.pack(f"<{len(buf) // 8}Q", *range(offset, end, 8))


if __name__ == "__main__":
    vu.serve(Numbered(), socket="numbered.sock")
