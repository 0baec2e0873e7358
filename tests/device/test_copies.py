"""Private copies: how Python sees data that lies in pieces, and what becomes of them.

A chain of a few descriptors may describe gigabytes out of one small buffer. What that costs, and
what the driver finds in its buffers afterwards, is told here.
"""

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import vhost_user as vu
from peer.blk import CANARY, HEADER, Status, Type
from peer.front_end import FrontEnd
from peer.process import eventually, private_kib
from peer.ring import Segment, Used

from .conftest import Bench, RamDisk

DEADLINE = 60.0
KIB = 1 << 10
MIB = 1 << 20


class Pieces:
    """A request whose data lies in buffers that do not touch."""

    def __init__(self, front: FrontEnd, length: int, count: int = 2) -> None:
        self.front = front
        memory = front.memory
        self.places = [memory.allocate(length // count + 64) for _ in range(count)]
        self.length = length // count
        for place in self.places:
            memory.write(place, bytes([CANARY]) * (self.length + 64))

    def segments(self, *, writable: bool) -> list[Segment]:
        return [Segment(place, self.length, writable) for place in self.places]

    def data(self) -> bytes:
        """What lies in the buffers now."""
        return b"".join(self.front.memory.read(place, self.length) for place in self.places)

    def surroundings(self) -> bytes:
        """What lies behind each of them."""
        parts = (self.front.memory.read(place + self.length, 64) for place in self.places)
        return b"".join(parts)


class Transfer:
    """A block request in pieces: header, data and status."""

    def __init__(self, front: FrontEnd, kind: Type, length: int, *, count: int = 2) -> None:
        self.front = front
        self.pieces = Pieces(front, length, count)
        self.header = front.memory.allocate(16)
        front.memory.write(self.header, HEADER.pack(kind, 0, 0))
        self.status_at = front.memory.allocate(1, 1)
        front.memory.write(self.status_at, bytes([CANARY]))
        self.writable = kind == Type.IN

    def offer(self, ring: int = 0) -> None:
        chain = [Segment(self.header, 16), *self.pieces.segments(writable=self.writable)]
        self.front.rings[ring].add([*chain, Segment(self.status_at, 1, True)])
        self.front.rings[ring].kick()

    def run(self) -> int:
        """Submits it and waits; gives the status."""
        self.offer()
        self.front.rings[0].wait(1)
        return self.status

    @property
    def status(self) -> int:
        return self.front.memory.read(self.status_at, 1)[0]


class Scripted(vu.Device):
    """A device of no particular type, whose callback is handed in."""

    device_id = 4

    def __init__(self, handle: Callable[[vu.Request], Any], **options: Any) -> None:
        super().__init__(**options)
        self.handle = handle

    def on_queue(self, queue: vu.Queue, /) -> None:
        for request in queue:
            self.handle(request)


def ask(front: FrontEnd, pieces: Pieces) -> Used:
    """Has the device fill the pieces."""
    ring = front.rings[0]
    ring.add(pieces.segments(writable=True))
    ring.kick()
    (used,) = ring.wait(1)
    return used


@contextlib.contextmanager
def total(budget: int) -> Iterator[None]:
    """All queues of the process have `budget` bytes for a while."""
    former = vu.set_total_copy_budget(budget)
    try:
        yield
    finally:
        assert vu.set_total_copy_budget(former) == budget


def messages(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [text for r in caplog.records if part in (text := r.getMessage())]


def told(caplog: pytest.LogCaptureFixture, part: str) -> str:
    """The one log record that says something; they are handed over by a thread."""
    assert eventually(lambda: len(messages(caplog, part)) == 1), caplog.text
    return messages(caplog, part)[0]


# What reaches the driver.


def test_only_the_bytes_that_were_answered_reach_the_driver(bench: Bench) -> None:
    def answer(request: vu.Request) -> None:
        request.writable[:16] = b"x" * 16
        request.complete(16)

    front = bench.drive(Scripted(answer))
    pieces = Pieces(front, 1024)
    assert ask(front, pieces).length == 16
    assert pieces.data() == b"x" * 16 + bytes([CANARY]) * 1008
    assert set(pieces.surroundings()) == {CANARY}


def test_an_answer_across_pieces_reaches_all_of_them(bench: Bench) -> None:
    def answer(request: vu.Request) -> None:
        request.writable[:] = bytes(range(256)) * 4
        request.complete(700)

    front = bench.drive(Scripted(answer))
    pieces = Pieces(front, 1024, count=4)
    assert ask(front, pieces).length == 700
    assert pieces.data() == (bytes(range(256)) * 4)[:700] + bytes([CANARY]) * 324


def test_what_the_device_has_not_written_is_zero_and_not_anothers(bench: Bench) -> None:
    """Memory is used again from request to request."""
    answers = iter([b"secret" * 100, b""])

    def answer(request: vu.Request) -> None:
        data = next(answers)
        request.writable[: len(data)] = data
        request.complete()

    front = bench.drive(Scripted(answer))
    ask(front, Pieces(front, 1024))
    second = Pieces(front, 1024)
    ask(front, second)
    assert second.data() == bytes(1024)


def fail(buf: memoryview) -> None:
    buf[:] = b"x" * len(buf)
    raise OSError(errno.EIO, "made up")


def keep(request: vu.BlockRequest) -> memoryview:
    data = request.data
    data[:] = b"x" * len(data)
    return data


class Failing(RamDisk):
    def read(self, offset: int, buf: memoryview, /) -> None:
        fail(buf)


class FailingBatch(RamDisk):
    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            keep(request)
            request.fail()


class RaisingBatch(RamDisk):
    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        fail(batch[0].data)


class FailingLate(RamDisk):
    """Answers a deferred request, whose view is kept for longer, from another place."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Any] = []

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            view = keep(request)
            self.held.append((request.defer(), view))


@pytest.mark.parametrize("device", [Failing, FailingBatch, RaisingBatch])
def test_of_a_read_that_failed_the_driver_gets_nothing_but_the_status(
    bench: Bench, device: type[RamDisk]
) -> None:
    transfer = Transfer(bench.drive(device()), Type.IN, 2048)
    assert transfer.run() == Status.IOERR
    assert transfer.pieces.data() == bytes([CANARY]) * 2048


def test_nor_does_it_when_the_last_view_goes_after_the_answer(bench: Bench) -> None:
    device = FailingLate()
    transfer = Transfer(bench.drive(device), Type.IN, 2048)
    transfer.offer()
    assert eventually(lambda: len(device.held) == 1)
    request, view = device.held.pop()
    request.fail()
    assert transfer.status == CANARY
    view.release()
    transfer.front.rings[0].wait(1)
    assert transfer.status == Status.IOERR
    assert transfer.pieces.data() == bytes([CANARY]) * 2048


def test_of_a_request_that_was_dropped_the_driver_gets_nothing(bench: Bench) -> None:
    device = FailingLate()
    transfer = Transfer(bench.drive(device), Type.IN, 2048)
    transfer.offer()
    assert eventually(lambda: len(device.held) == 1)
    device.held.clear()
    transfer.front.rings[0].wait(1)
    assert transfer.status == Status.IOERR
    assert transfer.pieces.data() == bytes([CANARY]) * 2048


@pytest.mark.parametrize("length", [2 * 512, 256 * KIB, 4 * MIB])
def test_data_in_pieces_arrives_whatever_its_length(bench: Bench, length: int) -> None:
    device = RamDisk()
    device.size, device.content = length, bytearray(range(256)) * (length // 256)
    front = bench.drive(device)
    read = Transfer(front, Type.IN, length)
    assert (read.run(), read.pieces.data()) == (Status.OK, bytes(device.content))
    write = Transfer(front, Type.OUT, length)
    assert write.run() == Status.OK
    assert bytes(device.content) == bytes([CANARY]) * length


def test_a_file_fills_the_copy_that_views_show(bench: Bench, tmp_path: Any) -> None:
    """`preadv` after `data`: both go to the driver by way of the copy, and more than one step."""
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 1024)

    class Disk(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            with image.open("rb") as file:
                for request in batch:
                    data = request.data
                    assert request.preadv(file.fileno()) == 256 * KIB
                    assert bytes(data[:256]) == bytes(range(256))
                    data[:4] = b"view"

    transfer = Transfer(bench.drive(Disk()), Type.IN, 256 * KIB)
    assert transfer.run() == Status.OK
    assert transfer.pieces.data() == b"view" + (bytes(range(256)) * 1024)[4:]


def test_a_view_may_be_copied_onto_its_own_request(bench: Bench) -> None:
    """Guest memory as source and target of the same copy, overlapping or not."""

    class Disk(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                data = request.data
                data[:] = bytes(range(256)) * 8
                request.copy_from(data)
                request.copy_from(data[256:])
                request.copy_from(data[100:1100])

    front = bench.drive(Disk())
    one = Transfer(front, Type.IN, 2048, count=1)
    two = Transfer(front, Type.IN, 2048, count=2)
    expected = bytearray(range(256)) * 8
    expected[:1792] = expected[256:]
    expected[:1000] = expected[100:1100]
    for transfer in (one, two):
        assert transfer.run() == Status.OK
        assert transfer.pieces.data() == bytes(expected)


# How much there may be.


def test_a_read_over_the_budget_of_its_queue_fails_and_the_log_says_how_to_raise_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    front = bench.drive(RamDisk(), copy_budget=64 * KIB)
    assert Transfer(front, Type.IN, 128 * KIB).run() == Status.IOERR
    text = told(caplog, "private copy")
    for part in ("131072 bytes", "0 of 65536 bytes are taken", "queue 0"):
        assert part in text
    for option in ("Backend(copy_budget=", "--copy-budget"):
        assert option in text
    assert not messages(caplog, "raised")


def test_a_request_in_one_piece_takes_nothing_of_the_budget(bench: Bench) -> None:
    front = bench.drive(RamDisk(), copy_budget=0)
    assert Transfer(front, Type.IN, 128 * KIB, count=1).run() == Status.OK
    assert Transfer(front, Type.IN, 1024, count=2).run() == Status.IOERR


def test_the_budget_is_whole_again_after_each_request(bench: Bench) -> None:
    front = bench.drive(RamDisk(), copy_budget=64 * KIB)
    for _ in range(5):
        assert Transfer(front, Type.IN, 128 * KIB).run() == Status.IOERR
        assert Transfer(front, Type.IN, 64 * KIB).run() == Status.OK
        assert Transfer(front, Type.OUT, 64 * KIB).run() == Status.OK


def test_another_queue_has_a_budget_of_its_own(bench: Bench) -> None:
    device = FailingLate()
    device.num_queues = 2
    front = bench.drive(device, queues=2, copy_budget=64 * KIB)
    transfers = [Transfer(front, Type.IN, 64 * KIB) for _ in range(2)]
    for ring, transfer in enumerate(transfers):
        transfer.offer(ring)
        front.rings[ring].kick()
    assert eventually(lambda: len(device.held) == 2)
    for request, view in device.held:
        view.release()
        request.complete()
    device.held.clear()
    for ring in (0, 1):
        front.rings[ring].wait(1)
    assert [transfer.status for transfer in transfers] == [Status.OK, Status.OK]


def test_what_is_deferred_counts_until_it_is_answered(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    device = FailingLate()
    front = bench.drive(device, copy_budget=64 * KIB)
    first = Transfer(front, Type.IN, 64 * KIB)
    first.offer()
    assert eventually(lambda: len(device.held) == 1)
    assert Transfer(front, Type.IN, 1024).run() == Status.IOERR
    assert "65536 of 65536 bytes are taken" in told(caplog, "private copy")
    last = Transfer(front, Type.IN, 1024)
    for transfer in (first, last):
        request, view = device.held.pop()
        view.release()
        request.complete()
        front.rings[0].wait(1)
        assert transfer.status == Status.OK
        if transfer is first:
            last.offer()
            assert eventually(lambda: len(device.held) == 1)


class Catching(RamDisk):
    """Fails those requests whose data it does not get, and serves the others."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[OSError] = []

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            try:
                request.data[:] = b"y" * request.length
            except OSError as error:
                self.errors.append(error)
                request.fail(error.errno or errno.EIO)


def test_data_over_the_budget_of_the_process_is_an_error_that_a_callback_may_catch(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    device = Catching()
    front = bench.drive(device)
    with total(64 * KIB):
        assert Transfer(front, Type.IN, 128 * KIB).run() == Status.IOERR
        assert Transfer(front, Type.IN, 64 * KIB).run() == Status.OK
    (error,) = device.errors
    assert error.errno == errno.ENOMEM
    text = told(caplog, "private copy")
    assert text.endswith(str(error.strerror))
    for part in ("131072 bytes", "of 65536 bytes are taken", "set_total_copy_budget"):
        assert part in text
    assert Transfer(front, Type.IN, 128 * KIB).run() == Status.OK


def test_a_batch_is_handed_over_in_parts_that_fit_the_budget(bench: Bench) -> None:
    sizes: list[list[int]] = []

    class Disk(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            sizes.append([len(request.data) for request in batch])

    front = bench.drive(Disk(), copy_budget=64 * KIB)
    lengths = [32 * KIB, 32 * KIB, 1024, 63 * KIB, 64 * KIB, 512 * 2]
    transfers = [Transfer(front, Type.IN, length) for length in lengths]
    for transfer in transfers:
        transfer.offer()
    front.rings[0].wait(len(lengths))
    assert {transfer.status for transfer in transfers} == {Status.OK}
    assert list(itertools.chain(*sizes)) == lengths
    assert all(sum(part) <= 64 * KIB for part in sizes)


def test_repeats_of_a_refusal_are_counted_and_not_logged_one_by_one(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    front = bench.drive(RamDisk(), copy_budget=1024)
    for _ in range(20):
        assert Transfer(front, Type.IN, 2048).run() == Status.IOERR
    front.stop_ring()
    bench.backend.stop()
    assert len(messages(caplog, "private copy of 2048 bytes")) == 1
    assert len(messages(caplog, "19 more requests")) == 1


@pytest.mark.parametrize("budget", [-1, 1 << 64])
def test_a_budget_is_a_number_of_bytes(budget: int) -> None:
    with pytest.raises(ValueError, match=str(budget)):
        vu.Backend(RamDisk(), socket="/unused", copy_budget=budget)
    with pytest.raises(ValueError, match=str(budget)):
        vu.set_total_copy_budget(budget)


# The longest request that a device takes.


def test_a_disk_does_not_see_a_request_that_is_longer_than_it_takes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    class Disk(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            calls.append(len(buf))

    front = bench.drive(Disk(max_request_bytes=4096))
    assert Transfer(front, Type.IN, 4096 + 512, count=1).run() == Status.IOERR
    text = told(caplog, "max_request_bytes")
    for part in ("4625 bytes", "4113 at most", "queue 0"):
        assert part in text
    assert Transfer(front, Type.IN, 4096, count=1).run() == Status.OK
    assert calls == [4096]


def test_another_device_gives_a_longer_request_back_empty(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[vu.Request] = []

    def answer(request: vu.Request) -> None:
        seen.append(request)
        request.complete()

    front = bench.drive(Scripted(answer, max_request_bytes=1024))
    long, short = Pieces(front, 1026), Pieces(front, 1024)
    assert ask(front, long).length == 0
    assert long.data() == bytes([CANARY]) * 1026
    assert ask(front, short).length == 1024
    assert len(seen) == 1
    assert "1026 bytes" in told(caplog, "max_request_bytes")


def test_each_request_of_a_batch_is_measured_alone(bench: Bench) -> None:
    """One that is too long goes back, and its neighbours are served in their order."""
    device = RamDisk(max_request_bytes=2048)
    front = bench.drive(device)
    lengths = [1024, 4096, 512, 2560, 2048]
    transfers = [Transfer(front, Type.IN, length, count=1) for length in lengths]
    ring = front.rings[0]
    heads = []
    for transfer in transfers:
        chain = [Segment(transfer.header, 16), *transfer.pieces.segments(writable=True)]
        heads.append(ring.lay([*chain, Segment(transfer.status_at, 1, True)]))
    ring.offer(*heads)
    ring.kick()
    ring.wait(len(heads))
    ok, bad = Status.OK, Status.IOERR
    assert [transfer.status for transfer in transfers] == [ok, bad, ok, bad, ok]


@pytest.mark.parametrize("size", [0, -1, 1 << 64])
def test_the_longest_request_is_a_positive_number_of_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="max_request_bytes"):
        RamDisk(max_request_bytes=size)


# What a hostile guest does to the process.

HUGE = """
import resource, sys
import vhost_user as vu

class Entropy(vu.Device):
    device_id = 4
    def on_queue(self, queue):
        for request in queue:
            try:
                request.writable
            except OSError as error:
                print(error.errno, flush=True)
            request.complete(0)

device = Entropy(max_request_bytes=1 << 32)
vu.set_total_copy_budget(1 << 40)
backend = vu.Backend(device, socket=sys.argv[1], copy_budget=1 << 40).start()
other = vu.Backend(vu.NullDisk(size=1 << 20), socket=sys.argv[2]).start()
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
print("up", flush=True)
sys.stdin.readline()
"""


def test_memory_that_the_system_does_not_give_is_an_error_and_not_the_end_of_the_process(
    socket_folder: Any,
) -> None:
    paths = [str(socket_folder / name) for name in ("huge", "other")]
    command = [sys.executable, "-c", textwrap.dedent(HUGE), *paths]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with (
            FrontEnd.connect(paths[0]).start() as huge,
            FrontEnd.connect(paths[1]).start() as other,
        ):
            place = huge.memory.allocate(2 * MIB)
            huge.rings[0].add_indirect([Segment(place, 2 * MIB, True)] * 1000)
            huge.rings[0].kick()
            assert process.stdout.readline() == f"{errno.ENOMEM}\n"
            assert huge.rings[0].wait(1)[0].length == 0
            assert other.blk().read(0, 512).status == Status.OK
        process.communicate("\n", timeout=DEADLINE)
        assert process.returncode == 0


def test_nothing_of_a_large_copy_stays_with_the_process(bench: Bench) -> None:
    """Neither while nobody touches it nor afterwards."""
    held: list[int] = []

    class Disk(vu.BlockDevice):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                view = request.data
                held.append(own_kib())
                view[:] = bytes(MIB) * (len(view) // MIB)
                held.append(own_kib())

        def read(self, offset: int, buf: memoryview, /) -> None:
            raise AssertionError

    front = bench.drive(Disk(size=32 * MIB, read_only=True))
    before = own_kib()
    place = front.memory.allocate(2 * MIB)
    header, status = front.memory.allocate(16), front.memory.allocate(1, 1)
    front.memory.write(header, HEADER.pack(Type.IN, 0, 0))
    data = [Segment(place, 2 * MIB, True)] * 16
    front.rings[0].add_indirect([Segment(header, 16), *data, Segment(status, 1, True)])
    front.rings[0].kick()
    front.rings[0].wait(1, 20)
    untouched, touched = held
    assert untouched < before + 8 * KIB
    assert touched > before + 30 * KIB
    assert eventually(lambda: own_kib() < before + 8 * KIB)


def own_kib() -> int:
    """Resident memory of this process's own, in KiB."""
    return private_kib(os.getpid())
