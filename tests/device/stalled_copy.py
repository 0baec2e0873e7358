"""A private copy that cannot go on before other Python code has run.

Run as a program, `stalled_copy.py CASE`: one page of the request's data does not come before a
thread of Python gives it. If who copies holds the interpreter meanwhile, that is never. Prints
"done"; ends with 77 where there is no userfaultfd.
"""

import ctypes
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vhost_user as vu
from peer.blk import HEADER, Status, Type
from peer.front_end import FrontEnd
from peer.memory import NAME, PAGE, GuestMemory
from peer.ring import Segment
from rig.userfault import Unavailable, Userfault, mappings

LENGTH = 256 << 10
"""Bytes of the request, in two pieces: long enough for the interpreter to be given up."""

WAIT = 20.0


class Disk(vu.BlockDevice):
    """What one of the cases does with its one request."""

    def __init__(self, handle: Callable[[vu.BlockRequest], Any]) -> None:
        super().__init__(size=LENGTH)
        self.handle = handle

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            self.handle(request)


class Plain(vu.BlockDevice):
    """One callback for a request."""

    def __init__(self) -> None:
        super().__init__(size=LENGTH)

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = b"x" * len(buf)

    def write(self, offset: int, buf: memoryview, /) -> None:
        seen.append(bytes(buf))


class Generic(vu.Device):
    """Any other device."""

    device_id = 4

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            seen.append(bytes(request.readable))
            target = request.writable
            target[:] = b"x" * len(target)
            request.complete()


seen: list[bytes] = []
views: list[memoryview] = []
later: list[vu.BlockRequest] = []
begun = threading.Event()


def fill(request: vu.BlockRequest) -> None:
    request.data[:] = b"x" * request.length


def look(request: vu.BlockRequest) -> None:
    seen.append(bytes(request.data))


def defer(request: vu.BlockRequest) -> None:
    fill(request)
    later.append(request.defer())
    begun.set()


def keep(request: vu.BlockRequest) -> None:
    views.append(request.data)
    views[0][:] = b"x" * request.length
    begun.set()


def complete() -> None:
    begun.wait(WAIT)
    later.pop().complete()


def let_go() -> None:
    begun.wait(WAIT)
    views.pop().release()


def nothing() -> None:
    """The callback's return is the end."""


CASES: dict[str, tuple[Callable[[], vu.Device], Type, Callable[[], None]]] = {
    "write": (Plain, Type.OUT, nothing),
    "read": (Plain, Type.IN, nothing),
    "data of a write": (lambda: Disk(look), Type.OUT, nothing),
    "data of a read": (lambda: Disk(fill), Type.IN, nothing),
    "complete": (lambda: Disk(defer), Type.IN, complete),
    "last view": (lambda: Disk(keep), Type.IN, let_go),
    "readable": (Generic, Type.OUT, nothing),
    "writable": (Generic, Type.IN, nothing),
}


def own_addresses(memory: GuestMemory) -> set[int]:
    """Where this program itself has mapped the guest's memory."""
    return {ctypes.addressof(ctypes.c_char.from_buffer(region.map)) for region in memory.regions}


def run(name: str, folder: Path, fault: Userfault) -> None:
    make, kind, end = CASES[name]
    path = folder / "disk.sock"
    with vu.Backend(make(), socket=path), FrontEnd.connect(str(path)).start() as front:
        memory = front.memory
        header, status = memory.allocate(16), memory.allocate(1, 1)
        memory.write(header, HEADER.pack(kind, 0, 0))
        # Neither piece is touched here: a page of the first is not there at all.
        pieces = [memory.allocate(LENGTH // 2 + PAGE, PAGE) for _ in range(2)]
        own = own_addresses(memory)
        (base,) = (first for first, _ in mappings(NAME) if first not in own)
        stalled = base + pieces[0] + 8 * PAGE
        fault.guard(stalled, PAGE)
        writable = kind == Type.IN
        data = [Segment(place, LENGTH // 2, writable) for place in pieces]
        is_disk = make is not Generic
        chain = [Segment(header, 16), *data, Segment(status, 1, True)] if is_disk else data
        front.rings[0].add(chain)
        front.rings[0].kick()
        thread = threading.Thread(target=end)
        thread.start()
        assert fault.wait(WAIT) & -PAGE == stalled
        # Here Python runs, and the copy does not.
        fault.fill(stalled, b"p" * PAGE)
        front.rings[0].wait(1, WAIT)
        thread.join()
        if writable:
            assert not is_disk or memory.read(status, 1)[0] == Status.OK
            assert all(memory.read(place, LENGTH // 2) == b"x" * (LENGTH // 2) for place in pieces)
        else:
            assert seen[0].count(b"p") == PAGE


def main() -> int:
    try:
        fault = Userfault()
    except Unavailable as why:
        print(why)
        return 77
    with fault, tempfile.TemporaryDirectory(prefix="vu") as folder:
        run(sys.argv[1], Path(folder), fault)
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
