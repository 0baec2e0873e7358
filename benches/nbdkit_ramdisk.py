"""The same RAM disk for nbdkit's Python plugin: `nbdkit python nbdkit_ramdisk.py size=N`."""

# mypy: ignore-errors
API_VERSION = 2

mem = memoryview(b"")


def config(key, value):
    global mem
    if key == "size":
        mem = memoryview(bytearray(int(value)))


def config_complete():
    if not len(mem):
        raise RuntimeError("size=BYTES is missing")


def open(readonly):
    return 1


def get_size(h):
    return len(mem)


def pread(h, buf, offset, flags):
    buf[:] = mem[offset : offset + len(buf)]


def pwrite(h, buf, offset, flags):
    mem[offset : offset + len(buf)] = buf
