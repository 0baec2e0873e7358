"""`BlockBatch`: the requests of `on_batch`, one by one and as a whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import vhost_user as vu
from vhost_user.testing import BlkFactory

SIZE = 1 << 20
PATTERN = bytes(range(256)) * (SIZE // 256)


class Disk(vu.BlockDevice):
    """Calls `body` with each batch."""

    def __init__(self, body: Callable[[vu.BlockBatch], None]) -> None:
        super().__init__(size=SIZE)
        self.body = body

    def on_batch(self, batch: vu.BlockBatch) -> None:
        self.body(batch)


def test_all_reads_and_writes_are_copied_at_once(vhost_blk: BlkFactory) -> None:
    disk = bytearray(SIZE)

    def body(batch: vu.BlockBatch) -> None:
        batch.copy_from(disk)
        batch.copy_to(disk)

    driver = vhost_blk(Disk(body))
    driver.pwrite(PATTERN, 0)
    assert disk == PATTERN
    assert driver.pread(SIZE, 0) == PATTERN
    assert driver.pread(512, SIZE - 512) == PATTERN[-512:]


def test_what_was_looked_at_is_copied_too(vhost_blk: BlkFactory) -> None:
    disk = bytearray(SIZE)
    seen: list[tuple[str, int]] = []

    def body(batch: vu.BlockBatch) -> None:
        seen.append((batch[0].op, batch[0].offset))
        batch.copy_to(disk)
        batch.copy_from(disk)

    driver = vhost_blk(Disk(body))
    driver.pwrite(PATTERN[:4096], 8192)
    assert driver.pread(4096, 8192) == PATTERN[:4096]
    assert seen == [("write", 8192), ("read", 8192)]


def test_a_file_takes_and_gives_the_data_of_a_batch(vhost_blk: BlkFactory, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)

    def body(batch: vu.BlockBatch) -> None:
        batch.pwritev(fd, 4096)
        batch.preadv(fd, start=4096)

    driver = vhost_blk(Disk(body))
    driver.pwrite(PATTERN[:65536], 65536)
    assert os.pread(fd, 65536, 4096 + 65536) == PATTERN[:65536]
    assert driver.pread(131072, 0) == bytes(65536) + PATTERN[:65536]
    # Past the end of the file there are zeroes.
    assert driver.pread(4096, 524288) == bytes(4096)
    os.close(fd)


def test_a_transfer_that_fails_fails_its_request_alone(
    vhost_blk: BlkFactory, tmp_path: Path
) -> None:
    fd = os.open(tmp_path / "disk", os.O_RDONLY | os.O_CREAT)

    def body(batch: vu.BlockBatch) -> None:
        batch.pwritev(fd)
        batch.preadv(fd)

    driver = vhost_blk(Disk(body))
    with pytest.raises(vu.RequestError):
        driver.pwrite(bytes(512), 0)
    assert driver.pread(512, 0) == bytes(512)
    os.close(fd)


def test_a_buffer_that_ends_too_early_copies_nothing(vhost_blk: BlkFactory) -> None:
    errors: list[str] = []

    def body(batch: vu.BlockBatch) -> None:
        copies: list[Callable[[], object]] = [
            lambda: batch.copy_from(bytes(1024)),
            lambda: batch[0].copy_from(bytes(1024), SIZE),
        ]
        for copy in copies:
            try:
                copy()
            except ValueError as error:
                errors.append(str(error))
        batch.copy_from(PATTERN)

    driver = vhost_blk(Disk(body))
    assert driver.pread(512, 1024) == PATTERN[1024:1536]
    assert errors[0] == "a read of 512 bytes at 1024 ends past the 1024 bytes of the buffer"
    assert errors[1] == f"512 bytes at {SIZE} end past the 1024 bytes of the buffer"


def test_a_batch_is_a_sequence(vhost_blk: BlkFactory) -> None:
    facts: list[object] = []

    def body(batch: vu.BlockBatch) -> None:
        requests = list(batch)
        facts.append(len(batch) == len(requests) == len(batch[:]))
        facts.append(all(batch[n] is request for n, request in enumerate(requests)))
        facts.append(batch[-1] is requests[-1] and batch.index(requests[-1]) == len(batch) - 1)
        facts.append(requests[0] in batch and batch.count(requests[0]) == 1)
        facts.append(list(reversed(batch)) == requests[::-1] == batch[::-1])
        for bad in (len(batch), -len(batch) - 1):
            with pytest.raises(IndexError):
                batch[bad]
        with pytest.raises(TypeError):
            batch["0"]  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="not in this batch"):
            batch.index(object())
        batch.copy_from(PATTERN)

    driver = vhost_blk(Disk(body))
    assert driver.pread(SIZE, 0) == PATTERN
    assert facts
    assert all(facts)


def test_one_request_may_fail_while_the_others_are_copied(vhost_blk: BlkFactory) -> None:
    def body(batch: vu.BlockBatch) -> None:
        for request in batch:
            if request.offset == 4096:
                request.fail()
        batch.copy_from(PATTERN)

    driver = vhost_blk(Disk(body))
    with pytest.raises(vu.RequestError):
        driver.pread(512, 4096)
    assert driver.pread(512, 8192) == PATTERN[8192:8704]


def test_a_batch_that_is_kept_is_empty_afterwards(vhost_blk: BlkFactory) -> None:
    kept: list[vu.BlockBatch] = []

    def body(batch: vu.BlockBatch) -> None:
        kept.append(batch)
        batch.copy_from(PATTERN)

    driver = vhost_blk(Disk(body))
    assert driver.pread(512, 0) == PATTERN[:512]
    assert driver.pread(512, 512) == PATTERN[512:1024]
    assert [len(batch) for batch in kept] == [0, 0]
    assert kept[0] is not kept[1]
    with pytest.raises(IndexError):
        kept[0][0]


def test_a_request_that_is_kept_says_that_it_was_answered(vhost_blk: BlkFactory) -> None:
    kept: list[vu.BlockRequest] = []

    def body(batch: vu.BlockBatch) -> None:
        kept.append(batch[0])
        batch.copy_from(PATTERN)

    driver = vhost_blk(Disk(body))
    assert driver.pread(512, 0) == PATTERN[:512]
    with pytest.raises(vu.StaleRequestError):
        kept[0].copy_from(bytes(512))


def test_a_part_of_a_buffer_is_named_by_its_start(vhost_blk: BlkFactory) -> None:
    disk = bytearray(SIZE)

    def body(batch: vu.BlockBatch) -> None:
        for request in batch:
            if request.op == "read":
                request.copy_from(disk, request.offset)
            else:
                request.copy_to(disk, request.offset)

    driver = vhost_blk(Disk(body))
    driver.pwrite(PATTERN, 0)
    assert driver.pread(SIZE, 0) == PATTERN


class Commanded(Disk):
    """Has methods for what is not about data."""

    def __init__(self, body: Callable[[vu.BlockBatch], None]) -> None:
        super().__init__(body)
        self.calls: list[object] = []

    def flush(self) -> None:
        self.calls.append("flush")

    def discard(self, offset: int, length: int) -> None:
        self.calls.append(("discard", offset, length))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.calls.append(("write_zeroes", offset, length, unmap))


@pytest.mark.parametrize("looked_at", [False, True], ids=["unseen", "looked at"])
def test_what_is_not_about_data_goes_to_its_method(vhost_blk: BlkFactory, looked_at: bool) -> None:
    def body(batch: vu.BlockBatch) -> None:
        if looked_at:
            assert all(request.op for request in batch)

    device = Commanded(body)
    driver = vhost_blk(device)
    driver.flush()
    driver.discard(4096, 8192)
    driver.write_zeroes(512, 1024, unmap=True)
    expected = ["flush", ("discard", 4096, 8192), ("write_zeroes", 512, 1024, True)]
    assert [call for call in device.calls if call in expected] == expected


def test_what_the_batch_answers_itself_does_not_go_to_a_method(vhost_blk: BlkFactory) -> None:
    def body(batch: vu.BlockBatch) -> None:
        for request in batch:
            if request.op == "discard":
                request.complete()
            elif request.op == "write_zeroes":
                request.fail()

    device = Commanded(body)
    driver = vhost_blk(device)
    driver.discard(0, 4096)
    with pytest.raises(vu.RequestError):
        driver.write_zeroes(0, 4096)
    assert device.calls == []


def test_a_method_that_raises_fails_what_the_batch_left(vhost_blk: BlkFactory) -> None:
    class Broken(Commanded):
        def flush(self) -> None:
            raise OSError("no disk")

    driver = vhost_blk(Broken(lambda _: None), on_error="report")
    with pytest.raises(vu.RequestError):
        driver.flush()
