"""A disk in Python behaves like an array of bytes, however requests come and lie in memory."""

import errno
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import vhost_user as vu
from hypothesis import given, settings
from hypothesis import strategies as st

from .disks import Calls, RamDisk
from .driver import OpenDriver, open_driver

SIZE = 16 << 10
SECTORS = SIZE // 512


class Submitting(RamDisk):
    """Answers from a file that Rust moves the data to and from."""

    def __init__(self, fd: int) -> None:
        super().__init__(SIZE)
        self.fd = fd

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            request.submit(self.fd)


class Viewing(RamDisk):
    """Answers from memory, through the pieces as they lie."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            at = request.offset
            for piece in request.segments:
                if piece.readonly:
                    self.mem[at : at + len(piece)] = piece
                else:
                    piece[:] = self.mem[at : at + len(piece)]
                at += len(piece)


@pytest.fixture(params=["callbacks", "views", "file"])
def driver(
    request: pytest.FixtureRequest, vhost_socket: Path, tmp_path: Path
) -> Iterator[OpenDriver]:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    with image.open("r+b") as file:
        device = {
            "callbacks": RamDisk(SIZE),
            "views": Viewing(SIZE),
            "file": Submitting(file.fileno()),
        }[request.param]
        with vu.Backend(device, socket=vhost_socket), open_driver(vhost_socket) as driver:
            yield driver


@st.composite
def transfers(draw: st.DrawFn) -> tuple[bool, int, list[int], int]:
    """Write or read, sector, sizes of the pieces in memory, byte to write."""
    sector = draw(st.integers(0, SECTORS - 1))
    length = 512 * draw(st.integers(1, min(8, SECTORS - sector)))
    cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=4)))
    edges = [0, *cuts, length]
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    return draw(st.booleans()), sector, sizes, draw(st.integers(0, 255))


def test_a_disk_behaves_like_an_array_of_bytes(driver: OpenDriver) -> None:
    model = bytearray(SIZE)

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(st.lists(transfers(), min_size=1, max_size=8))
    def check(steps: list[tuple[bool, int, list[int], int]]) -> None:
        for write, sector, sizes, byte in steps:
            at, length = sector * 512, sum(sizes)
            if write:
                data = bytes([byte]) * length
                request = driver.write(at, data, *sizes)
                model[at : at + length] = data
            else:
                request = driver.read(at, *sizes)
            used = driver.wait()
            assert (used.head, request.status) == (request.head, 0)
            if not write:
                assert request.data == model[at : at + length]
                assert used.length == length + 1

    check()


@given(length=st.integers(0, 4096), step=st.sampled_from([1, 2, -1]))
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
def test_no_buffer_reaches_past_a_request(length: int, step: int) -> None:
    outcomes: list[object] = []

    class Copying(Calls):
        def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
            (request,) = batch
            source = memoryview(b"c" * length)[::step]
            try:
                outcomes.append(request.copy_from(source))
            except (ValueError, BufferError) as error:
                outcomes.append(type(error))
                request.fail(errno.EIO)

    with vu.testing.blk(Copying(), on_error="report") as disk:
        try:
            data = disk.pread(1024, 0)
        except vu.RequestError:
            data = b""
    contiguous = step == 1 or length <= 1
    if contiguous and length <= 1024:
        assert outcomes == [length]
        assert data[:length] == b"c" * length
    else:
        assert outcomes in ([ValueError], [BufferError])
        assert data == b""
