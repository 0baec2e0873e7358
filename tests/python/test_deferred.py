"""Requests that outlive their callback, and requests that are answered twice or too late."""

import gc
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import Type
from peer.front_end import FrontEnd
from peer.process import eventually
from peer.ring import INDIRECT, Segment

from .disks import Keeping, RamDisk
from .driver import open_driver
from .repeats import repeats


def test_a_deferred_request_is_answered_later_from_another_thread(vhost_socket: Path) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for sizes in ((512,), (256, 256)):
            read = driver.read(0, *sizes)
            request = device.take()
            write = driver.write(0, bytes(512))
            assert driver.wait().head == write.head, "a deferred request holds up no other"
            request.copy_from(b"d" * 512)
            request.complete()
            used = driver.wait()
            assert (used.head, used.length, read.status) == (read.head, 513, 0)
            assert read.data == b"d" * 512


def test_a_deferred_request_may_fail(vhost_socket: Path) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        device.take().fail()
        driver.wait()
        assert read.status == 1


def test_views_of_a_deferred_request_hold_its_answer(vhost_socket: Path) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for sizes in ((512,), (256, 256)):
            read = driver.read(0, *sizes)
            request = device.take()
            view = request.data
            request.complete()
            write = driver.write(0, bytes(512))
            assert driver.wait().head == write.head
            view[:] = b"v" * 512
            view.release()
            assert driver.wait().head == read.head
            assert read.data == b"v" * 512


def test_deferred_requests_that_are_dropped_fail_and_are_a_line_and_a_number(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        for _ in range(66):  # more than the ring has entries
            read = driver.read(0, 512)
            device.take()
            gc.collect()
            driver.wait()
            assert read.status == 1
    said = "Keeping.on_batch: a deferred request was dropped"
    first, *numbers = [r.getMessage().removeprefix(f"{vhost_socket}: ") for r in caplog.records]
    place = "read of 512 bytes at offset 0, queue 0"
    assert first == f"{said} without an answer: it fails ({place})"
    assert repeats(numbers, said) == 65


def test_a_request_that_is_deferred_and_not_kept_fails_and_is_told(
    vhost_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                request.defer()

    with vu.Backend(Forgetful(), socket=vhost_socket), open_driver(vhost_socket) as driver:
        for _ in range(3):
            read = driver.read(0, 512)
            assert driver.wait().head == read.head
            assert read.status == 1
    first, *numbers = [record.getMessage() for record in caplog.records]
    said = "Forgetful.on_batch: a deferred request was dropped"
    assert f"{said} without an answer" in first
    assert repeats(numbers, said) == 2


def test_a_request_is_answered_once(vhost_socket: Path) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        request = device.take()
        request.complete()
        assert driver.wait().head == read.head
        uses = (
            request.complete,
            request.fail,
            request.defer,
            request.fill,
            lambda: request.data,
            lambda: request.segments,
            lambda: request.copy_from(bytes(512)),
            lambda: request.preadv(0),
            lambda: request.submit(0),
        )
        for use in uses:
            with pytest.raises(vu.StaleRequestError, match="answered before"):
                use()
        assert (request.op, request.offset, request.length) == ("read", 0, 512)


def test_an_answer_within_the_batch_is_the_only_one(vhost_blk: vu.testing.BlkFactory) -> None:
    errors: list[Exception] = []

    class Twice(RamDisk):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            for request in batch:
                request.fill(1)
                request.complete()
                try:
                    request.fail()
                except vu.StaleRequestError as error:
                    errors.append(error)

    assert vhost_blk(Twice()).pread(512, 0) == b"\x01" * 512
    assert len(errors) == 1


def test_of_many_threads_that_answer_one_wins(vhost_socket: Path) -> None:
    device = Keeping("read")
    threads = 8
    with (
        ThreadPoolExecutor(threads) as pool,
        vu.Backend(device, socket=vhost_socket),
        open_driver(vhost_socket) as driver,
    ):
        for _ in range(200):
            read = driver.read(0, 512)
            request = device.take()
            start = threading.Barrier(threads)

            def answer(request: vu.BlockRequest = request, start: object = start) -> bool:
                assert isinstance(start, threading.Barrier)
                start.wait()
                try:
                    request.complete()
                except vu.StaleRequestError:
                    return False
                return True

            won = [pool.submit(answer) for _ in range(threads)]
            assert sum(future.result(5) for future in won) == 1
            assert driver.wait().head == read.head
        assert driver.ring.used_index == 200


def test_an_answer_after_the_stop_raises_and_touches_nothing(vhost_socket: Path) -> None:
    device = Keeping("read")
    backend = vu.Backend(device, socket=vhost_socket).start()
    with open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        request = device.take()
        backend.stop(drain=0.05)
        uses = (
            lambda: request.fill(7),
            lambda: request.copy_from(bytes(512)),
            lambda: request.data,
            lambda: request.segments,
            request.complete,
        )
        for use in uses:
            with pytest.raises(vu.StaleRequestError, match="stopped"):
                use()
        assert read.untouched
        assert read.status == 0xA5


def test_a_transfer_is_submitted_while_the_callback_runs(vhost_socket: Path) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        request = device.take()
        write = driver.write(0, bytes(512))
        assert driver.wait().head == write.head  # so the read's batch is over
        with pytest.raises(vu.StaleRequestError, match="returned"):
            request.submit(0)
        request.complete()


def test_an_answer_after_the_front_end_left_raises(vhost_socket: Path) -> None:
    device = Keeping("read")
    with vu.Backend(device, socket=vhost_socket):
        with open_driver(vhost_socket) as driver:
            driver.read(0, 512)
            request = device.take()
        with open_driver(vhost_socket) as driver:
            write = driver.write(0, bytes(512))
            assert driver.wait().head == write.head
            with pytest.raises(vu.StaleRequestError, match="stopped"):
                request.complete()
            assert driver.ring.used_index == 1


def test_an_object_that_is_still_known_is_not_used_for_another_request(
    vhost_blk: vu.testing.BlkFactory,
) -> None:
    class Collecting(RamDisk):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[vu.BlockRequest] = []

        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            self.seen.extend(batch)

    device = Collecting()
    disk = vhost_blk(device)
    for sector in range(5):
        disk.pread(512, sector * 512)
    assert [request.offset for request in device.seen] == [0, 512, 1024, 1536, 2048]


def test_chains_in_flight_have_a_limit_together_and_the_rest_waits_in_the_ring(
    vhost_socket: Path,
) -> None:
    """4096 reads of 1024 pieces each, all by one table, so that they cost the guest nothing: the
    lists of their pieces would take 64 MiB here, and those of a longer ring more."""
    device = Keeping("read")
    device.num_queues = 2
    with (
        vu.Backend(device, socket=vhost_socket, threads=1),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.negotiate().share_memory()
        ring = front.start_ring(0, 4096)
        front.start_ring(1)
        request = front.blk(0).prepare(Type.IN, 0, room=512)
        data = [Segment(request.data, 512, True)] * 1022
        chain = [Segment(request.header, 16), *data, Segment(request.status, 1, True)]
        table = front.memory.allocate(16 * len(chain))
        ring.write_table(table, chain)
        for head in range(4096):
            ring.set_descriptor(head, table, 16 * len(chain), INDIRECT)
        ring.offer(*range(4096))
        ring.kick()
        # The one worker looks at each queue in turns, so that it has looked at the first 100 times.
        for _ in range(100):
            assert front.blk(1).get_id().status == 0
        assert len(device.kept) == 256
        for _ in range(4096):
            device.take().complete()
        assert eventually(lambda: ring.used_index == 4096)
        assert (device.kept, front.memory.read(request.status, 1)) == ([], b"\0")
