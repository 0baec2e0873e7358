"""Block requests that ask for what is not there, and layouts that are legal but rare."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peer.blk import CANARY, HEADER, SECTOR, BlkDriver, Status, Type, segment_range
from peer.front_end import FrontEnd
from peer.memory import GuestMemory, Region
from peer.process import eventually
from peer.ring import Segment

from .server import SIZE, Server

SECTORS = SIZE // SECTOR
MIB = 1 << 20
SERIAL = "a serial of 20 bytes"
UNTOUCHED = bytes([CANARY])
random_ = random.Random(4)


@pytest.fixture
def disk(server: Server) -> BlkDriver:
    """The victim's first queue, running."""
    return server.started().blk()


def run_segments(disk: BlkDriver, segments: list[Segment]) -> int:
    """Sends a chain; gives its used length."""
    disk.ring.add(segments)
    disk.ring.kick()
    return disk.ring.wait(1)[0].length


# Where the data lies.


@pytest.mark.parametrize(
    ("sector", "length"),
    [
        pytest.param(SECTORS, 512, id="at the end"),
        pytest.param(SECTORS - 1, 1024, id="over the end"),
        pytest.param(1 << 55, 512, id="wraps to zero in bytes"),
        pytest.param((1 << 55) + 8, 512, id="wraps to a good place in bytes"),
        pytest.param((1 << 64) - 1, 512, id="largest"),
        pytest.param((1 << 64) - 1, 1024, id="sum wraps"),
    ],
)
def test_a_place_outside_the_disk_fails(
    server: Server, disk: BlkDriver, sector: int, length: int
) -> None:
    assert disk.read(sector, length) == (Status.IOERR, UNTOUCHED * length, 1)
    assert disk.write(sector, b"\x44" * length).status == Status.IOERR
    assert server.calls() == []
    assert not any(server.content())


@pytest.mark.parametrize("length", [0, 1, 511, 513])
def test_a_length_that_is_no_whole_number_of_sectors_fails(
    server: Server, disk: BlkDriver, length: int
) -> None:
    assert disk.read(0, length).status == Status.IOERR
    assert disk.write(0, b"\x44" * length).status == Status.IOERR
    assert server.calls() == []


def cut(address: int, length: int, writable: bool) -> list[Segment]:
    """A buffer in up to six segments, cut at random."""
    cuts = sorted(random_.randrange(length + 1) for _ in range(random_.randrange(6)))
    ends = [*cuts, length]
    return [
        Segment(address + start, end - start, writable)
        for start, end in zip([0, *cuts], ends, strict=True)
        if end > start
    ]


def test_a_read_may_be_cut_anywhere(server: Server, disk: BlkDriver) -> None:
    """Header, and data with the status behind it in one buffer, each cut at random points."""
    content = random_.randbytes(4096)
    assert disk.write(0, content).status == Status.OK
    for turn in range(500):
        sector = turn % 8
        header, buffer = disk.memory.allocate(16, 1), disk.memory.allocate(513, 1)
        disk.memory.write(header, HEADER.pack(Type.IN, 0, sector))
        assert run_segments(disk, cut(header, 16, False) + cut(buffer, 513, True)) == 513
        expected = content[sector * 512 : sector * 512 + 512]
        assert disk.memory.read(buffer, 513) == expected + bytes([Status.OK])
    server.check_witness()


def test_a_write_may_be_cut_anywhere(server: Server, disk: BlkDriver) -> None:
    """Header with the data behind it in one buffer, cut at random points, and the status."""
    expected = bytearray(4096)
    for turn in range(500):
        sector = turn % 8
        data = random_.randbytes(512)
        buffer, status = disk.memory.allocate(528, 1), disk.memory.allocate(1, 1)
        disk.memory.write(buffer, HEADER.pack(Type.OUT, 0, sector) + data)
        assert run_segments(disk, [*cut(buffer, 528, False), Segment(status, 1, True)]) == 1
        assert disk.memory.read(status, 1) == bytes([Status.OK])
        expected[sector * 512 : sector * 512 + 512] = data
    assert server.content()[:4096] == expected


@pytest.mark.parametrize("readable", [0, 15])
def test_a_chain_without_a_whole_header_comes_back_empty(
    server: Server, disk: BlkDriver, readable: int
) -> None:
    request = disk.prepare(Type.OUT, 0, b"\x44" * 512)
    head = [Segment(request.header, readable)] if readable else []
    assert run_segments(disk, [*head, Segment(request.status, 1, True)]) == 0
    assert disk.memory.read(request.status, 1) == UNTOUCHED
    assert server.calls() == []
    assert disk.read(0, 512).status == Status.OK


def test_a_chain_without_room_for_the_status_comes_back_empty(
    server: Server, disk: BlkDriver
) -> None:
    request = disk.prepare(Type.OUT, 0, b"\x44" * 512)
    assert run_segments(disk, request.chain()[:-1]) == 0
    assert server.calls() == []
    assert disk.read(0, 512).status == Status.OK


# What is asked for.


@pytest.mark.parametrize("kind", [3, 9, 0x8000_0001, 0xFFFF_FFFF], ids=hex)
def test_an_unknown_type_is_unsupported(server: Server, disk: BlkDriver, kind: int) -> None:
    for request in (disk.prepare(kind, 0), disk.prepare(kind, 0, room=512)):
        assert disk.run(request).status == Status.UNSUPP
    assert server.calls() == []


@pytest.mark.victim("ram", read_only=True)
def test_a_read_only_disk_is_not_written(server: Server, disk: BlkDriver) -> None:
    assert disk.write(0, b"\x44" * 512).status == Status.IOERR
    assert disk.discard(segment_range(0, 1)).status == Status.IOERR
    assert disk.write_zeroes(segment_range(0, 1)).status == Status.IOERR
    assert disk.read(0, 512).status == Status.OK
    assert [call for call, _, _ in server.calls()] == ["read"]


RANGES = [
    pytest.param(bytes(8), id="half a segment"),
    pytest.param(bytes(24), id="one and a half segments"),
    pytest.param(b"", id="no segment"),
    pytest.param(segment_range(0, 0xFFFF_FFFF), id="longer than the disk"),
    pytest.param(segment_range(SECTORS - 1, 2), id="over the end"),
    pytest.param(segment_range((1 << 64) - 1, 2), id="wraps"),
    pytest.param(segment_range(0, 1) + segment_range(SECTORS, 1), id="the second outside"),
]


@pytest.mark.parametrize("payload", RANGES)
@pytest.mark.parametrize("kind", [Type.DISCARD, Type.WRITE_ZEROES])
def test_a_malformed_range_fails_and_nothing_is_done(
    server: Server, disk: BlkDriver, kind: Type, payload: bytes
) -> None:
    assert disk.run(disk.prepare(kind, 0, payload)).status == Status.IOERR
    assert server.calls() == []


@pytest.mark.parametrize("kind", [Type.DISCARD, Type.WRITE_ZEROES])
def test_more_ranges_than_announced_fail(server: Server, disk: BlkDriver, kind: Type) -> None:
    """The standard leaves open which error: the driver has broken its promise."""
    ranges = segment_range(0, 1) * 1000
    assert disk.run(disk.prepare(kind, 0, ranges)).status in (Status.IOERR, Status.UNSUPP)
    assert server.calls() == []


@pytest.mark.parametrize(
    ("kind", "flags"),
    [(Type.DISCARD, 1), (Type.DISCARD, 2), (Type.WRITE_ZEROES, 2), (Type.WRITE_ZEROES, 1 << 31)],
)
def test_unknown_range_flags_are_unsupported(
    server: Server, disk: BlkDriver, kind: Type, flags: int
) -> None:
    request = disk.prepare(kind, 0, segment_range(0, 1, flags))
    assert disk.run(request).status == Status.UNSUPP
    assert server.calls() == []


def test_ranges_reach_the_device_in_bytes(server: Server, disk: BlkDriver) -> None:
    assert disk.write(0, b"\x44" * 4096).status == Status.OK
    assert disk.discard(segment_range(6, 2)).status == Status.OK
    assert disk.write_zeroes(segment_range(1, 2, 1)).status == Status.OK
    expected = [("write", 0, 4096), ("discard", 3072, 1024), ("write_zeroes", 512, 1024)]
    assert server.calls() == expected
    assert server.content()[:4096] == b"\x44" * 512 + bytes(1024) + b"\x44" * 2560


@pytest.mark.victim("ram", serial=SERIAL)
@pytest.mark.parametrize("room", [1, 19, 20, 21, 4096])
def test_the_serial_number_fills_at_most_20_bytes(
    server: Server, disk: BlkDriver, room: int
) -> None:
    server.check_witness()
    request = disk.prepare(Type.GET_ID, 0, room=room)
    head = disk.submit(request)
    disk.ring.kick()
    (used,) = disk.ring.wait(1)
    written = min(room, 20)
    result = disk.result(request)
    assert used.head == head
    assert result.status == Status.OK
    assert result.data == SERIAL.encode()[:written] + UNTOUCHED * (room - written)


@pytest.mark.victim("ram", serial="short")
def test_a_short_serial_number_is_padded_with_zeroes(disk: BlkDriver) -> None:
    assert disk.get_id().data == b"short" + bytes(15)


def test_a_flush_is_done_whatever_comes_with_it(server: Server, disk: BlkDriver) -> None:
    """The standard reserves the sector and knows no data."""
    for request in (
        disk.prepare(Type.FLUSH, 0),
        disk.prepare(Type.FLUSH, 1 << 60),
        disk.prepare(Type.FLUSH, 0, bytes(512)),
        disk.prepare(Type.FLUSH, 0, room=512),
    ):
        assert disk.run(request).status == Status.OK
    assert [call for call, _, _ in server.calls()] == ["flush"] * 4


def test_the_used_length_counts_what_was_written(disk: BlkDriver) -> None:
    assert disk.read(0, 1024).used == 1025
    assert disk.write(0, bytes(1024)).used == 1
    assert disk.flush().used == 1
    assert disk.discard(segment_range(0, 1)).used == 1
    assert disk.read(SECTORS, 512).used == 1
    assert disk.run(disk.prepare(99, 0, room=64)).used == 1


def test_the_status_lies_in_the_last_byte_although_a_failed_read_leaves_its_data(
    disk: BlkDriver,
) -> None:
    result = disk.read(SECTORS, 4096)
    assert result.status == Status.IOERR
    assert result.data == UNTOUCHED * 4096


# Files.


@pytest.mark.victim("file")
def test_an_image_that_was_cut_fails_reads_past_its_end(server: Server, disk: BlkDriver) -> None:
    assert disk.write(0, b"\x66" * SIZE).status == Status.OK
    os.truncate(server.image, SIZE // 2)
    assert disk.read(SECTORS - 8, 4096).status == Status.IOERR
    assert disk.read(SECTORS // 2 - 1, 1024).status == Status.IOERR
    assert disk.read(0, 4096).data == b"\x66" * 4096
    os.truncate(server.image, SIZE)
    assert disk.read(SECTORS - 8, 4096).data == bytes(4096)
    maps = Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8")
    assert str(server.image) not in maps


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)]
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    assert mount is not None
    subprocess.run([mount, *options], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_file_system_fails_writes_until_there_is_room(
    small_file_system: Path, fresh_server: Callable[..., Server]
) -> None:
    image = small_file_system / "image"
    image.touch()
    os.truncate(image, 2 * MIB)
    filler = small_file_system / "filler"
    filler.write_bytes(bytes(900 * 1024))
    disk = fresh_server("file", path=str(image)).started().blk()
    results = [disk.write(n * 64, b"\x77" * 32768).status for n in range(8)]
    assert Status.IOERR in results
    assert set(results) <= {Status.OK, Status.IOERR}
    filler.unlink()
    assert disk.write(0, b"\x77" * 32768).status == Status.OK
    assert disk.flush().status == Status.OK


@contextlib.contextmanager
def failing_flush(server: Server) -> Iterator[None]:
    """Makes the process's next fdatasync or fsync fail."""
    strace = shutil.which("strace")
    assert strace is not None, "this test needs Debian's package strace: make deps"
    calls = "fdatasync,fsync,sync_file_range"
    what = ["-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO:when=1"]
    log = server.folder / "strace"
    process = subprocess.Popen(
        [strace, "-f", *what, "-o", str(log), "-p", str(server.pid)], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    attached = b"attached" in process.stderr.readline()
    try:
        assert attached, "strace cannot attach: is kernel.yama.ptrace_scope above 0?"
        yield
    finally:
        process.terminate()
        process.communicate()


def test_a_flush_that_failed_once_fails_until_the_image_is_opened_again(
    fresh_server: Callable[..., Server],
) -> None:
    """After an error the kernel has forgotten which pages were dirty: a later success would lie."""
    server = fresh_server("file")
    disk = server.started().blk()
    assert disk.write(0, b"\x88" * 512).status == Status.OK
    with failing_flush(server):
        assert [disk.flush().status for _ in range(3)] == [Status.IOERR] * 3
        server.check_witness()
    assert disk.flush().status == Status.IOERR


def many_straddling(front: FrontEnd, kind: Type) -> tuple[list[Segment], int, int]:
    """A chain of 1,024 descriptors, 1,022 of them over a border between regions."""
    disk, border = front.blk(), MIB
    request = disk.prepare(kind, 0)
    middle = [Segment(border - 256, 512, kind == Type.IN)] * 1022
    return (
        [Segment(request.header, 16), *middle, Segment(request.status, 1, True)],
        border - 256,
        request.status,
    )


@pytest.mark.parametrize("kind", ["ram", "file"])
def test_a_chain_with_more_vectors_than_a_system_call_takes_works(
    kind: str, fresh_server: Callable[..., Server]
) -> None:
    """Over two thousand pieces of memory; the kernel takes 1,024 in one call."""
    memory = GuestMemory(Region(0, MIB), Region(MIB, MIB, user=0x5000_0000_0000))
    front = fresh_server(kind).connect(memory).negotiate().share_memory()
    ring = front.start_ring(0, 256)
    data = random_.randbytes(512)
    memory.write(MIB - 256, data)
    for type_, used_length in ((Type.OUT, 1), (Type.IN, 1022 * 512 + 1)):
        chain, where, status = many_straddling(front, type_)
        ring.add_indirect(chain)
        ring.kick()
        assert ring.wait(1)[0].length == used_length
        assert memory.read(status, 1) == bytes([Status.OK])
        assert memory.read(where, 512) == data
        memory.write(where, bytes(512))
    assert front.blk().read(1021, 512).data == data


@pytest.mark.victim("file")
def test_a_file_holds_what_was_written_once_a_flush_is_done(
    server: Server, disk: BlkDriver
) -> None:
    data = random_.randbytes(8192)
    assert disk.write(16, data).status == Status.OK
    assert disk.flush().status == Status.OK
    assert eventually(lambda: server.image.read_bytes()[8192:16384] == data)
