"""The same RAM disk for nbdkit's Python plugin: `nbdkit python THIS_FILE size=BYTES`.

The functions' names and arguments are nbdkit's.
"""

API_VERSION = 2

mem = memoryview(bytearray())


def config(key: str, value: str) -> None:
    """Takes `size=BYTES`."""
    global mem
    if key == "size":
        mem = memoryview(bytearray(int(value)))


def open(readonly: bool) -> int:
    """Opens a connection; there is nothing to keep for it."""
    return int(readonly)


def get_size(handle: int) -> int:
    """Bytes of the disk."""
    return len(mem)


def pread(handle: int, buf: memoryview, offset: int, flags: int) -> None:
    """Fills `buf`."""
    buf[:] = mem[offset : offset + len(buf)]


def pwrite(handle: int, buf: memoryview, offset: int, flags: int) -> None:
    """Takes `buf`."""
    mem[offset : offset + len(buf)] = buf
