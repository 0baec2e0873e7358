"""The peer's front-end drives a back-end that somebody else wrote.

What it may later find wrong with ours counts only if it works with this one. The back-end is
qemu-storage-daemon's `vhost-user-blk` export (`make deps` installs it).
"""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import wire
from .blk import BlkFeature, Status, segment_range
from .front_end import FrontEnd
from .memory import GuestMemory, Region
from .numbers import Feature, ProtocolFeature, Request
from .process import eventually

DAEMON = shutil.which("qemu-storage-daemon")

SIZE = 8 << 20

Serve = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image of random bytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts the daemon on a block node; gives the socket's path."""
    running: list[subprocess.Popen[bytes]] = []

    def start(blockdev: str, queues: int = 1) -> str:
        socket = tmp_path / "blk.sock"
        export = f"vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={socket}"
        command = [str(DAEMON), "--blockdev", f"{blockdev},node-name=n", "--export"]
        command.append(f"{export},writable=on,num-queues={queues}")
        running.append(subprocess.Popen(command))
        assert eventually(lambda: answers(socket)), "the daemon does not listen"
        return str(socket)

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


def answers(path: Path) -> bool:
    try:
        wire.Channel.connect(str(path)).close()
    except OSError:
        return False
    return True


def file(path: Path) -> str:
    return f"driver=file,filename={path},discard=unmap"


def test_negotiation_shows_the_features_that_the_daemon_documents(serve: Serve) -> None:
    with FrontEnd.connect(serve(f"driver=null-co,size={SIZE}")).negotiate() as front:
        assert front.features & Feature.VERSION_1
        assert front.features & BlkFeature.FLUSH
        assert front.protocol & ProtocolFeature.CONFIG
        answer = front.channel.ask(Request.GET_CONFIG, wire.config(0, 60, bytes(60)))
        assert int.from_bytes(answer[12:20], "little") == SIZE // 512


def test_bytes_are_read_and_written_where_the_requests_say(serve: Serve, image: Path) -> None:
    before = image.read_bytes()
    with FrontEnd.connect(serve(file(image))).start() as front:
        disk = front.blk()
        assert disk.read(3, 4096) == (Status.OK, before[3 * 512 : 3 * 512 + 4096], 4097)
        assert disk.write(100, b"\x5a" * 1024).status == Status.OK
        assert disk.flush().status == Status.OK
        assert front.stop_ring() == 3
    after = image.read_bytes()
    assert after == before[:51200] + b"\x5a" * 1024 + before[52224:]


def test_many_requests_in_flight_wrap_the_ring(serve: Serve, image: Path) -> None:
    content = image.read_bytes()
    with FrontEnd.connect(serve(file(image))).start(size=16) as front:
        disk, ring = front.blk(), front.rings[0]
        requests = [disk.prepare(0, 0, room=512) for _ in range(5)]
        for turn in range(40):
            sectors = {disk.submit(request): 5 * turn for request in requests}
            ring.kick()
            assert {used.head for used in ring.wait(5)} == set(sectors)
            for request in requests:
                assert disk.result(request).data == content[:512]
        assert front.stop_ring() == 200


def test_two_queues_and_the_event_index(serve: Serve, image: Path) -> None:
    content = image.read_bytes()
    with FrontEnd.connect(serve(file(image), queues=2)).start(
        queues=2, also=Feature.EVENT_IDX
    ) as front:
        assert front.features & Feature.EVENT_IDX
        for index in (0, 1):
            for sector in range(3):
                front.rings[index].used_event = front.rings[index].seen
                found = front.blk(index).read(sector, 512)
                assert found.data == content[sector * 512 : sector * 512 + 512]


def test_buffers_cross_adjacent_regions(serve: Serve, image: Path) -> None:
    memory = GuestMemory(Region(0, 1 << 20), Region(1 << 20, 1 << 20, user=0x5000_0000_0000))
    with FrontEnd.connect(serve(file(image)), memory).start() as front:
        disk, border = front.blk(), (1 << 20) - 512
        request = disk.prepare(0, 8)._replace(data=border, length=1024, writable=True)
        assert disk.run(request).data == image.read_bytes()[4096:5120]


def test_a_chain_may_lie_in_an_indirect_table(serve: Serve, image: Path) -> None:
    with FrontEnd.connect(serve(file(image))).start() as front:
        request = front.blk().prepare(0, 8, room=1024)
        front.rings[0].add_indirect(request.chain())
        front.rings[0].kick()
        front.rings[0].wait(1)
        assert front.blk().result(request).data == image.read_bytes()[4096:5120]


def test_write_zeroes_takes_a_range(serve: Serve, image: Path) -> None:
    with FrontEnd.connect(serve(file(image))).start() as front:
        assert front.blk().write_zeroes(segment_range(2, 4)).status == Status.OK
        assert front.blk().flush().status == Status.OK
    assert image.read_bytes()[1024:3072] == bytes(2048)


def test_a_malformed_chain_gives_no_answer(serve: Serve) -> None:
    """Shows that the driver really sends what a test writes: the daemon rejects the loop."""
    with FrontEnd.connect(serve(f"driver=null-co,size={SIZE}")).start() as front:
        ring = front.rings[0]
        address = front.memory.allocate(16)
        for index, following in ((0, 1), (1, 0)):
            ring.set_descriptor(index, address, 16, 1, following)
        ring.offer(0)
        ring.kick()
        closed = front.channel.is_closed
        assert eventually(lambda: ring.is_broken(0) or closed(0.01))
        assert ring.used_index == 0


def test_memory_slots_are_added_and_removed(serve: Serve) -> None:
    with FrontEnd.connect(serve(f"driver=null-co,size={SIZE}")).negotiate() as front:
        assert front.channel.ask_u64(Request.GET_MAX_MEM_SLOTS) > 8
        region = front.memory.regions[0]
        front.change(Request.ADD_MEM_REG, wire.single_region(region.describe()), [region.fd])
        front.start_ring()
        assert front.blk().read(0, 512).status == Status.OK
        front.stop_ring()
        front.change(Request.REM_MEM_REG, wire.single_region(region.describe()))


def test_a_message_in_single_bytes_with_a_descriptor_arrives_whole(serve: Serve) -> None:
    with FrontEnd.connect(serve(f"driver=null-co,size={SIZE}")).negotiate() as front:
        call = os.eventfd(0)
        data = wire.frame(Request.SET_VRING_CALL, wire.u64(0), 0x9)
        front.channel.send_pieces(data, range(1, len(data)), [call])
        assert front.channel.answer_to(Request.SET_VRING_CALL) == bytes(8)
        os.close(call)
