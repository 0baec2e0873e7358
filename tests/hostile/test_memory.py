"""Memory tables that lie, and memory that is taken away."""

import contextlib
import fcntl
import os
import platform
import resource
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import wire
from peer.blk import Type
from peer.dirty_log import LOGGING
from peer.front_end import FrontEnd
from peer.memory import PAGE, GuestMemory, Region
from peer.numbers import Flag, Request
from peer.process import eventually, guest_mappings
from peer.ring import NEXT, WRITE, Used

from .conftest import Refused
from .server import Server

MIB = 1 << 20
GIB = 1 << 30
TOP_PAGE = (1 << 64) - PAGE


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return wire.memory_table([wire.region(*region) for region in regions])


def test_an_empty_memory_table_is_refused(server: Server, refused: Refused) -> None:
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, table())


@pytest.mark.parametrize(("count", "fds"), [(9, 8), (8, 7), (0xFFFF_FFFF, 1)])
def test_a_memory_table_with_a_wrong_count_is_refused(
    server: Server, refused: Refused, count: int, fds: int
) -> None:
    present = [wire.region(n << 20, PAGE, n << 20, 0) for n in range(min(count, 9))]
    payload = wire.memory_table(present, count=count)
    descriptors = [server.memfd() for _ in range(fds)]
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, payload, descriptors)


@pytest.mark.parametrize(
    "region",
    [
        pytest.param((0, 0, 0, 0), id="empty"),
        pytest.param((TOP_PAGE, 2 * PAGE, 0, 0), id="guest address wraps"),
        pytest.param((0, 2 * PAGE, TOP_PAGE, 0), id="user address wraps"),
        pytest.param((0, 2 * PAGE, 0, TOP_PAGE), id="offset wraps"),
        pytest.param((0, GIB, 0, 0), id="file too short"),
        pytest.param((0, PAGE, 0, 2 * PAGE), id="offset past the file"),
        pytest.param((0, 1 << 63, 0, 0), id="half the address space"),
        pytest.param((0, (1 << 64) - 1, 0, 0), id="all of the address space"),
    ],
)
@pytest.mark.parametrize("message", [Request.SET_MEM_TABLE, Request.ADD_MEM_REG])
def test_an_impossible_region_is_refused(
    server: Server, refused: Refused, message: Request, region: tuple[int, int, int, int]
) -> None:
    front = server.connect().negotiate()
    described = wire.region(*region)
    single = message == Request.ADD_MEM_REG
    payload = wire.single_region(described) if single else wire.memory_table([described])
    refused(front, message, payload, [server.memfd(2 * PAGE)])


def test_a_region_over_an_empty_file_is_refused(server: Server, refused: Refused) -> None:
    payload = table((0, PAGE, 0, 0))
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, payload, [server.memfd(0)])


def test_a_region_larger_than_any_machine_is_refused(server: Server, refused: Refused) -> None:
    """A sparse file makes 64 TiB look real."""
    payload = table((0, 1 << 46, 0, 0))
    sparse = server.memfd(1 << 46)
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, payload, [sparse])


def slots_taken(front: FrontEnd, sparse: int, size: int) -> int:
    """How many slots of `size` bytes of one file are taken before one is refused; at most 20."""
    front.negotiate()
    for number in range(20):
        payload = wire.single_region(wire.region(number * size, size, number * size, 0))
        if front.is_refused(Request.ADD_MEM_REG, payload, [sparse]):
            return number
    return 20


def test_what_one_front_end_maps_is_bounded_as_a_sum(server: Server) -> None:
    """Each slot alone is as large as a machine may be; together they are the address space."""
    sparse, size = server.memfd(1 << 44), 1 << 44
    front = server.connect()
    # A quarter of 128 TiB on x86-64; others have 256.
    most = 2 if platform.machine() == "x86_64" else 4
    assert slots_taken(front, sparse, size) == most
    assert front.lives()
    server.check_witness()
    text = f"its {size:#x} bytes and the {most * size:#x} that this front-end already mapped"
    server.assert_logs(text, f"more than the limit of {most * size:#x}")
    front.close()
    assert slots_taken(server.connect(), sparse, size) == most


OVERLAPS = [
    pytest.param((0, GIB), (GIB // 2, GIB), id="by half"),
    pytest.param((0, GIB), (GIB - 1, PAGE), id="by one byte"),
    pytest.param((0, GIB), (0, GIB), id="identical"),
    pytest.param((0, GIB), (PAGE, PAGE), id="one inside the other"),
]


@pytest.mark.parametrize(("one", "other"), OVERLAPS)
@pytest.mark.parametrize("space", ["guest", "user"])
def test_overlapping_regions_are_refused(
    server: Server, refused: Refused, one: tuple[int, int], other: tuple[int, int], space: str
) -> None:
    front = server.connect().negotiate()
    if space == "guest":
        regions = [(*one, 0, 0), (*other, 4 * GIB, 0)]
    else:
        regions = [(0, one[1], one[0], 0), (4 * GIB, other[1], other[0], 0)]
    fds = [server.memfd(GIB), server.memfd(2 * GIB)]
    refused(front, Request.SET_MEM_TABLE, table(*regions), fds)


@pytest.mark.parametrize(("one", "other"), OVERLAPS)
def test_adding_an_overlapping_region_is_refused(
    server: Server, refused: Refused, one: tuple[int, int], other: tuple[int, int]
) -> None:
    front = server.connect().negotiate()
    first = wire.single_region(wire.region(*one, 0, 0))
    second = wire.single_region(wire.region(*other, 4 * GIB, 0))
    front.change(Request.ADD_MEM_REG, first, [server.memfd(GIB)])
    refused(front, Request.ADD_MEM_REG, second, [server.memfd(2 * GIB)])


def test_an_offset_within_a_page_is_mapped_rightly_or_refused(server: Server) -> None:
    memory = GuestMemory(Region(0, 4 * MIB), Region(8 * MIB, PAGE, offset=0x10))
    front = server.connect(memory).negotiate()
    if front.is_refused(Request.SET_MEM_TABLE, memory.table(), memory.fds):
        assert front.lives()
        return
    front.start_ring()
    disk = front.blk()
    request = disk.prepare(Type.OUT, 0)._replace(data=8 * MIB, length=512)
    memory.write(8 * MIB, b"\x77" * 512)
    assert disk.run(request).status == 0
    assert server.content()[:512] == b"\x77" * 512


def test_a_region_of_odd_size_ends_at_its_last_byte(server: Server) -> None:
    """The page around its end is mapped; the bytes past the end are not the guest's to name."""
    memory = GuestMemory(Region(0, 4 * MIB), Region(8 * MIB, 0x1001))
    front = server.started(memory=memory)
    disk = front.blk()
    request = disk.prepare(Type.FLUSH, 0)._replace(status=8 * MIB + 0x1000)
    assert disk.run(request).status == 0
    ring = front.rings[0]
    ring.set_descriptor(0, request.header, 16, NEXT, 1)
    ring.set_descriptor(1, 8 * MIB + 0x1000, 2, WRITE)
    memory.write(8 * MIB + 0x1000, b"\x55")
    ring.offer(0)
    ring.kick()
    assert ring.wait() == [Used(0, 0)]
    assert memory.read(8 * MIB + 0x1000, 1) == b"\x55"


def _pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _epoll() -> int:
    poller = select.epoll()
    descriptor = os.dup(poller.fileno())
    poller.close()
    return descriptor


WRONG_KINDS: dict[str, Callable[[Path], int]] = {
    "null": lambda _: os.open("/dev/null", os.O_RDWR),
    "zero": lambda _: os.open("/dev/zero", os.O_RDWR),
    "directory": lambda folder: os.open(folder, os.O_RDONLY),
    "eventfd": lambda _: os.eventfd(0),
    "path only": lambda folder: os.open(folder, os.O_PATH),
    "epoll": lambda _: _epoll(),
    "pipe": lambda _: _pipe(),
    "socket": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(),
}


@pytest.mark.parametrize("kind", list(WRONG_KINDS))
def test_memory_that_is_no_regular_file_is_refused(
    server: Server, refused: Refused, tmp_path: Path, kind: str
) -> None:
    descriptor = server.own(WRONG_KINDS[kind](tmp_path))
    payload = table((0, PAGE, 0, 0))
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, payload, [descriptor])


def sealed(_: Path) -> int:
    descriptor = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(descriptor, PAGE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return descriptor


def read_only(folder: Path) -> int:
    (folder / "file").write_bytes(bytes(PAGE))
    return os.open(folder / "file", os.O_RDONLY)


@pytest.mark.parametrize("make", [sealed, read_only])
def test_memory_that_cannot_be_written_is_refused(
    server: Server, refused: Refused, tmp_path: Path, make: Callable[[Path], int]
) -> None:
    payload = table((0, PAGE, 0, 0))
    descriptor = server.own(make(tmp_path))
    refused(server.connect().negotiate(), Request.SET_MEM_TABLE, payload, [descriptor])


def test_descriptors_beside_a_later_byte_belong_to_no_message(
    server: Server,
) -> None:
    """They ride on the first byte of a header; here they come with the payload."""
    front = server.connect().negotiate()
    payload = table((0, PAGE, 0, 0))
    header = wire.HEADER.pack(Request.SET_MEM_TABLE, 0x9, len(payload))
    front.channel.send(header)
    assert eventually(front.channel.is_taken)
    front.channel.send(payload, [server.memfd()])
    with contextlib.suppress(wire.Closed):
        assert front.channel.answer_to(Request.SET_MEM_TABLE) != bytes(8)
    assert guest_mappings(server.pid) == 1


def test_a_table_without_the_running_ring_stops_that_ring_only(server: Server) -> None:
    """Refused, or the queue is broken: either way it touches nothing from then on."""
    memory = GuestMemory(Region(0, 4 * MIB), Region(8 * MIB, MIB))
    front = server.connect(memory).negotiate().share_memory()
    front.add_ring(1)
    ring = front.start_ring(0)
    assert front.blk().read(0, 512).status == 0
    other = memory.regions[1]
    payload = wire.memory_table([other.describe()])
    if front.is_refused(Request.SET_MEM_TABLE, payload, [other.fd]):
        assert front.blk().read(0, 512).status == 0
        return
    disk = front.blk()
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    ring.kick()
    server.check_witness()
    assert front.lives()
    assert ring.is_broken()
    assert ring.used_index == 1


def test_the_slot_of_a_running_ring_may_be_removed_in_bounded_time(server: Server) -> None:
    front = server.connect().negotiate()
    region = front.memory.regions[0]
    slot = wire.single_region(region.describe())
    front.change(Request.ADD_MEM_REG, slot, [region.fd])
    ring = front.start_ring()
    assert front.blk().read(0, 512).status == 0
    front.channel.socket.settimeout(15)
    gone = not front.is_refused(Request.REM_MEM_REG, slot)
    server.check_witness()
    disk = front.blk()
    disk.submit(disk.prepare(Type.IN, 0, room=512))
    ring.kick()
    assert front.lives()
    if gone:
        assert guest_mappings(server.pid) == 1
        assert ring.used_index == 1
    else:
        ring.wait(1)


def test_one_slot_more_than_announced_is_refused(server: Server, refused: Refused) -> None:
    front = server.connect().negotiate()
    slots = front.channel.ask_u64(Request.GET_MAX_MEM_SLOTS)
    assert slots == 509
    region = front.memory.regions[0]
    front.change(Request.ADD_MEM_REG, wire.single_region(region.describe()), [region.fd])
    page = server.memfd()
    for slot in range(1, slots + 1):
        payload = wire.single_region(wire.region(GIB * slot, PAGE, GIB * slot, 0))
        if slot < slots:
            front.change(Request.ADD_MEM_REG, payload, [page])
    front.start_ring()
    assert front.blk().read(0, 512).status == 0
    refused(front, Request.ADD_MEM_REG, payload, [page])
    if front.channel.is_open():
        assert front.blk().read(0, 512).status == 0


@pytest.mark.parametrize(
    ("guest", "size", "user"),
    [
        pytest.param(2 * GIB, PAGE, 0, id="unknown"),
        pytest.param(GIB, 2 * PAGE, GIB, id="other size"),
        pytest.param(GIB, PAGE, 2 * GIB, id="other user address"),
    ],
)
def test_removing_what_is_no_slot_is_refused(
    server: Server, refused: Refused, guest: int, size: int, user: int
) -> None:
    front = server.connect().negotiate()
    payload = wire.single_region(wire.region(GIB, PAGE, GIB, 0))
    front.change(Request.ADD_MEM_REG, payload, [server.memfd()])
    refused(front, Request.REM_MEM_REG, wire.single_region(wire.region(guest, size, user, 0)))


def test_a_slot_is_removed_with_one_descriptor_but_not_with_two(server: Server) -> None:
    """Some front-ends attach the region's descriptor; the offset does not count."""
    front = server.connect().negotiate()
    payload = wire.single_region(wire.region(GIB, PAGE, GIB, 0))
    front.change(Request.ADD_MEM_REG, payload, [server.memfd()])
    removal = wire.single_region(wire.region(GIB, PAGE, GIB, PAGE))
    assert front.is_refused(Request.REM_MEM_REG, removal, [server.memfd(), server.memfd()])
    front.change(Request.REM_MEM_REG, removal, [server.memfd()])
    assert guest_mappings(server.pid) == 1  # the witness's


@pytest.mark.victim("holding")
def test_a_replaced_table_lives_until_the_last_request_that_uses_it(server: Server) -> None:
    front = server.started(size=256)
    disk, ring = front.blk(), front.rings[0]
    requests = [disk.prepare(Type.IN, 0, room=512) for _ in range(64)]
    for request in requests:
        disk.submit(request)
    ring.kick()
    assert server.awaits("held", 64)
    before = guest_mappings(server.pid)
    front.share_memory()
    assert guest_mappings(server.pid) == before + 1
    assert server.ask("release") == []
    ring.wait(64)
    assert {disk.result(request).status for request in requests} == {0}
    assert eventually(lambda: guest_mappings(server.pid) == before)


@pytest.mark.victim("holding")
def test_a_slot_is_gone_once_its_removal_is_acknowledged(server: Server) -> None:
    """64 requests use the slot; the answer comes after the last of them, not before."""
    memory = GuestMemory(Region(0, 4 * MIB), Region(8 * MIB, MIB))
    front = server.started(size=256, memory=memory)
    disk, ring = front.blk(), front.rings[0]
    requests = []
    for n in range(64):
        data = 8 * MIB + n * 512
        requests.append(disk.prepare(Type.IN, 0)._replace(data=data, length=512, writable=True))
        disk.submit(requests[-1])
    ring.kick()
    assert server.awaits("held", 64)
    slot = memory.regions[1]
    removal = wire.frame(
        Request.REM_MEM_REG,
        wire.single_region(slot.describe()),
        Flag.VERSION | Flag.NEED_REPLY,
    )
    mapped = guest_mappings(server.pid)
    front.channel.send(removal)
    assert eventually(front.channel.is_taken)
    server.check_witness()
    assert front.channel.silent()
    assert server.ask("release") == []
    assert front.channel.answer_to(Request.REM_MEM_REG) == bytes(8)
    assert guest_mappings(server.pid) == mapped - 1
    ring.wait(64)
    ring.set_descriptor(0, 8 * MIB, 16, 0)
    ring.offer(0)
    ring.kick()
    assert ring.wait() == [Used(0, 0)]


def test_tables_and_slots_leave_no_mapping_behind(
    server: Server, turns: Callable[[int, int], int]
) -> None:
    """300 turns; with VHOST_USER_SOAK=1, 100,000."""
    front = server.connect().negotiate()
    slot = wire.single_region(wire.region(GIB, PAGE, GIB, 0))
    page = server.memfd()
    for _ in range(turns(300, 100_000)):
        front.share_memory()
        front.change(Request.ADD_MEM_REG, slot, [page])
        front.change(Request.REM_MEM_REG, slot)
    assert guest_mappings(server.pid) == 2


@pytest.mark.parametrize(
    ("size", "offset"),
    [((1 << 64) - 1, 1), (0, 0), (PAGE, 1)],
    ids=["wraps", "empty", "offset within a page"],
)
def test_an_impossible_dirty_log_is_refused(server: Server, size: int, offset: int) -> None:
    """The message has an answer of its own and no form for an error, so the connection closes."""
    front = server.connect().negotiate(protocol=LOGGING)
    good = wire.u64(PAGE) + wire.u64(PAGE)
    assert front.channel.ask(Request.SET_LOG_BASE, good, [server.memfd(2 * PAGE)]) == good
    payload = wire.u64(size) + wire.u64(offset)
    assert front.is_dropped(Request.SET_LOG_BASE, payload, [server.memfd(2 * PAGE)])


def test_running_out_of_descriptors_maps_nothing_and_the_next_table_works(
    server: Server,
) -> None:
    front = server.connect().negotiate()
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{server.pid}/fd")) + 1
    regions = [(GIB * n, PAGE, GIB * n, 0) for n in range(8)]
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 3, hard))
    try:
        data = wire.frame(Request.SET_MEM_TABLE, table(*regions), 0x9)
        front.channel.send(data, [server.memfd() for _ in regions])
        try:
            assert front.channel.answer_to(Request.SET_MEM_TABLE) != bytes(8)
        except wire.Closed:
            front.close()  # the kernel cut the descriptors off: the message is lost
            front = server.connect()
        assert guest_mappings(server.pid) == 1
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
    if not front.features:
        front.negotiate()
    front.share_memory().start_ring()
    assert front.blk().read(0, 512).status == 0


def test_descriptors_that_the_limit_cut_off_drop_the_connection(server: Server) -> None:
    """Of two descriptors for one region there is room for one, and so the count looks right."""
    front = server.connect().negotiate()
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    open_now = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
    free = next(number for number in range(soft) if number not in open_now)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        fds = [server.memfd(), server.memfd()]
        data = wire.frame(Request.SET_MEM_TABLE, table((0, PAGE, 0, 0)), 0x9)
        front.channel.send(data, fds)
        assert front.channel.is_closed()
        assert guest_mappings(server.pid) == 1
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_guest_memory_is_left_out_of_core_dumps(server: Server) -> None:
    server.started()
    lines = Path(f"/proc/{server.pid}/smaps").read_text(encoding="utf-8").splitlines()
    starts = [at for at, line in enumerate(lines) if "/memfd:peer-guest" in line]
    flags = [next(x for x in lines[at:] if x.startswith("VmFlags:")) for at in starts]
    assert len(flags) == 2
    assert all(" dd" in line for line in flags)
