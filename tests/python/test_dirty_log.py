"""What a device writes to guest memory is noted in the dirty log, however it writes it."""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import HEADER, Status, Type
from peer.dirty_log import LOGGING, Copy, DirtyLog
from peer.front_end import FrontEnd
from peer.memory import PAGE, GuestMemory, Region
from peer.process import eventually
from peer.ring import Segment

from .disks import SIZE, BatchDisk, RamDisk
from .receivers import SECONDS, Port

MIB = 1 << 20


class Late(RamDisk):
    """Lets go of each view later, in another thread, which has filled it till then."""

    def read(self, offset: int, buf: memoryview, /) -> None:
        view, data = buf[:], self.mem[offset : offset + len(buf)]

        def finish() -> None:
            view[:] = data
            view.release()

        threading.Thread(target=finish).start()


class Deferring(RamDisk):
    """Answers in another thread, the last request first."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        requests = [request.defer() for request in batch]

        def finish() -> None:
            for request in reversed(requests):
                if request.op == "read":
                    request.copy_from(self.mem[request.offset :][: request.length])
                request.complete()

        threading.Thread(target=finish).start()


def file_disk(path: Path, *, direct: bool) -> vu.FileDisk:
    path.write_bytes(os.urandom(SIZE))
    return vu.FileDisk(path, direct=direct)


def made(kind: type[RamDisk]) -> Callable[[Path], vu.BlockDevice]:
    def make(_: Path) -> vu.BlockDevice:
        device = kind()
        device.mem[:] = os.urandom(SIZE)
        return device

    return make


Served = vu.Device | vu.FileDisk

DISKS: dict[str, Callable[[Path], Served]] = {
    "views": made(RamDisk),
    "batches": made(BatchDisk),
    "late views": made(Late),
    "deferred": made(Deferring),
    "file": lambda path: file_disk(path, direct=False),
    "direct": lambda path: file_disk(path, direct=True),
}


@contextmanager
def logged(device: Served, socket: Path, queues: int = 1) -> Iterator[tuple[FrontEnd, DirtyLog]]:
    """A front-end whose back-end's writes are logged, with little memory."""
    memory = GuestMemory(Region(0, 2 * MIB))
    with vu.Backend(device, socket=socket), FrontEnd.connect(str(socket), memory) as front:
        front.start(queues, protocol=LOGGING)
        log = DirtyLog(front)
        log.start()
        try:
            yield front, log
        finally:
            log.close()


def on_disk(path: Path, kind: str) -> Served:
    try:
        return DISKS[kind](path)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")


@pytest.mark.parametrize("kind", DISKS)
def test_each_byte_that_a_disk_changes_is_in_a_marked_page(
    kind: str, vhost_socket: Path, tmp_path: Path
) -> None:
    with logged(on_disk(tmp_path / "disk.img", kind), vhost_socket) as (front, log):
        blk = front.blk()
        for length in (512, PAGE, 3 * PAGE + 512):
            requests = [
                blk.prepare(Type.IN, 8, room=length),
                blk.prepare(Type.OUT, 16, os.urandom(length)),
                blk.prepare(Type.GET_ID, 0, room=20),
            ]
            front.enable(on=0)
            for request in requests:
                blk.submit(request)
            log.replace()
            before = Copy(front)
            front.enable()
            front.rings[0].kick()
            front.rings[0].wait(len(requests))
            assert [blk.result(request).status for request in requests] == [Status.OK] * 3
            changed = before.changed()
            assert changed
            front.stop_ring()
            assert changed <= log.marked()
            assert len(log.marked()) <= len(changed) + 3, "and hardly any others are"
            front.configure_ring(base=front.rings[0].used_index)
            log.log_ring(0)
            front.hand_over_events()


def test_what_a_failed_read_has_written_is_marked(vhost_socket: Path) -> None:
    class Half(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            buf[: 3 * PAGE] = b"h" * (3 * PAGE)
            raise OSError(5, "the rest cannot be read")

    with logged(Half(), vhost_socket) as (front, log):
        blk = front.blk()
        request = blk.prepare(Type.IN, 0, room=6 * PAGE)
        front.enable(on=0)
        blk.submit(request)
        before = Copy(front)
        front.enable()
        front.rings[0].kick()
        front.rings[0].wait()
        assert blk.result(request).status == Status.IOERR
        changed = before.changed()
        assert len(changed) >= 4
        assert changed <= log.marked()


@pytest.mark.parametrize("kind", DISKS)
def test_a_copy_made_under_load_has_all_that_a_disk_has_written(
    kind: str, vhost_socket: Path, tmp_path: Path
) -> None:
    picks = random.Random(kind)
    with logged(on_disk(tmp_path / "disk.img", kind), vhost_socket, queues=1) as (front, log):
        ring, blk = front.rings[0], front.blk()
        # Only the device writes to these pages: the data of reads.
        places = front.memory.allocate(64 * 4 * PAGE, PAGE)
        header, status = front.memory.allocate(64 * 16), front.memory.allocate(64, 64)
        copy, slots, in_flight = Copy(front), list(range(16)), {}
        for _ in range(60):
            while slots:
                slot = slots.pop()
                length = picks.choice([512, 1536, PAGE, 3 * PAGE])
                at = places + 4 * PAGE * slot + 512 * picks.randrange(0, 4)
                sector = picks.randrange(0, (SIZE - length) // 512)
                front.memory.write(header + 16 * slot, HEADER.pack(Type.IN, 0, sector))
                segments = [Segment(header + 16 * slot, 16), Segment(at, length, writable=True)]
                in_flight[ring.add([*segments, Segment(status + slot, 1, writable=True)])] = slot
            ring.kick()
            # The device is at work meanwhile.
            copy.take(log.replace())
            for used in ring.wait(picks.randrange(1, 8)):
                slots.append(in_flight.pop(used.head))
        front.stop_ring()
        copy.take(log.marked())
        size = 64 * 4 * PAGE
        assert copy.read(places, size) == front.memory.read(places, size)
        assert blk.memory.read(status, 16) == bytes(16)
        at, length = ring.places.used, 6 + 8 * ring.size
        assert copy.read(at, length) == front.memory.read(at, length)


@contextmanager
def receiving(device: Port, socket: Path) -> Iterator[tuple[FrontEnd, DirtyLog]]:
    with logged(device, socket, queues=2) as (front, log):
        yield front, log


def test_of_a_buffer_that_is_sent_to_the_written_bytes_are_marked(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as (front, log):
        at = front.memory.allocate(8 * PAGE, PAGE)
        front.rings[0].add([Segment(at, 4 * PAGE, writable=True)])
        front.rings[0].kick()
        device.hears("buffers 0")
        log.replace()
        before = Copy(front)
        device.rx.send(b"s" * (PAGE + 1))
        front.rings[0].wait()
        data = {at // PAGE, at // PAGE + 1}
        assert data <= before.changed() <= log.marked()
        assert not log.marked() & {at // PAGE + 2, at // PAGE + 3}


def test_a_buffer_that_was_taken_is_marked_when_it_goes_back(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as (front, log):
        at = front.memory.allocate(4 * PAGE, PAGE)
        front.rings[0].add([Segment(at, 2 * PAGE, writable=True)])
        front.rings[0].kick()
        device.hears("buffers 0")
        request = device.rx.take()
        assert request is not None
        request.writable[:] = b"t" * (2 * PAGE)
        # It says that it has written nothing.
        request.complete(0)
        front.rings[0].wait()
        assert {at // PAGE, at // PAGE + 1} <= log.marked()


def test_a_buffer_that_goes_back_unused_at_a_stop_is_marked(vhost_socket: Path) -> None:
    device = Port()
    with receiving(device, vhost_socket) as (front, log):
        at = front.memory.allocate(4 * PAGE, PAGE)
        front.rings[0].add([Segment(at, 2 * PAGE, writable=True)])
        front.rings[0].kick()
        device.hears("buffers 0")
        request = device.rx.take()
        assert request is not None
        view = request.writable
        view[:] = b"u" * (2 * PAGE)
        view.release()
        assert front.stop_ring(0) == 0, "the ring has stepped back over it"
        assert {at // PAGE, at // PAGE + 1} <= log.marked()


def test_a_request_that_is_late_is_marked_with_what_it_has_written(vhost_socket: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Stuck(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            buf[:PAGE] = b"w" * PAGE
            entered.set()
            leave.wait(SECONDS)
            buf[PAGE:] = b"x" * PAGE

    backend = vu.Backend(Stuck(), socket=vhost_socket, drain=0.1)
    memory = GuestMemory(Region(0, 2 * MIB))
    with backend, FrontEnd.connect(str(vhost_socket), memory) as front:
        front.start(protocol=LOGGING)
        log = DirtyLog(front)
        log.start()
        blk = front.blk()
        request = blk.prepare(Type.IN, 0, room=2 * PAGE)
        front.enable(on=0)
        blk.submit(request)
        before = Copy(front)
        front.enable()
        front.rings[0].kick()
        assert entered.wait(SECONDS)
        front.stop_ring()
        changed = before.changed()
        leave.set()
        assert blk.result(request).status == Status.IOERR
        assert changed <= log.marked()
        assert before.changed() == changed, "what it writes later reaches nobody"
        log.close()


@contextmanager
def serving(device: RamDisk, socket: Path) -> Iterator[vu.VirtioBlkDriver]:
    with (
        vu.Backend(device, socket=socket),
        vu.VirtioBlkDriver.connect(socket, memory=4 * MIB) as driver,
    ):
        yield driver


def test_the_drivers_own_log_tells_what_a_migration_needs(vhost_socket: Path) -> None:
    device = RamDisk()
    with serving(device, vhost_socket) as driver:
        with pytest.raises(ValueError, match="no log was started"):
            driver.dirty_pages()
        driver.start_dirty_log()
        memory = bytearray(driver.guest_memory(0, 4 * MIB))
        device.mem[:] = os.urandom(SIZE)
        assert driver.pread(64 * 1024, 4096) == device.mem[4096 : 4096 + 64 * 1024]
        bases = driver.stop_queues()
        assert bases == [3]
        pages = driver.dirty_pages()
        for page in pages:
            memory[PAGE * page : PAGE * page + PAGE] = driver.guest_memory(PAGE * page, PAGE)
        assert len(pages) >= 17
        assert bytes(device.mem[4096 : 4096 + 64 * 1024]) in memory
        with pytest.raises(ValueError, match="the queues are stopped: start them first"):
            driver.pread(512, 0)
        driver.start_queues()
        assert driver.pread(512, 0) == device.mem[:512]
        assert len(driver.dirty_pages()) >= 2, "the log goes on after a start"
        driver.stop_dirty_log()
        with pytest.raises(ValueError, match="no log was started"):
            driver.dirty_pages()
        driver.start_dirty_log()
        assert driver.pread(512, 0) == device.mem[:512]
        assert len(driver.dirty_pages()) >= 2
        with pytest.raises(ValueError, match="are not in guest memory"):
            driver.guest_memory(4 * MIB - 1, 2)


def test_a_log_that_is_too_short_is_told_once(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with vu.Backend(RamDisk(), socket=vhost_socket), FrontEnd.connect(str(vhost_socket)) as front:
        front.start(protocol=LOGGING)
        log = DirtyLog(front)
        log.bytes = 8
        log.start()
        blk = front.blk()
        front.memory.allocate(64 * PAGE)
        for _ in range(3):
            assert blk.read(0, 512).status == Status.OK
        told = "has 8 bytes where"
        assert eventually(lambda: told in caplog.text, SECONDS)
        assert caplog.text.count(told) == 1
        assert log.marked() <= set(range(64))
        log.close()
