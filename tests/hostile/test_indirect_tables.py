"""Indirect tables: too long, too short, nested, looped, and legal but rare."""

import pytest
from peer.blk import Request, Status, Type
from peer.front_end import FrontEnd
from peer.numbers import Feature
from peer.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Segment

from .attack import assert_broken
from .chains import lay, write_request
from .server import Server


def table_of(front: FrontEnd, entries: int) -> tuple[Request, int]:
    """A read in an indirect table of so many entries: header, one-byte pieces, and the status."""
    pieces = entries - 2
    request = front.blk().prepare(Type.IN, 0, room=-(-pieces // 512) * 512)
    whole = request.length
    segments = [Segment(request.header, 16)]
    segments += [Segment(request.data + n, 1, True) for n in range(pieces - 1)]
    segments.append(Segment(request.data + pieces - 1, whole - pieces + 1, True))
    segments.append(Segment(request.status, 1, True))
    table = front.memory.allocate(16 * entries)
    front.rings[0].write_table(table, segments)
    return request, table


@pytest.mark.parametrize("entries", [300, 515, 1024])
def test_an_indirect_table_may_be_longer_than_the_ring(front: FrontEnd, entries: int) -> None:
    """Windows drivers send up to 515 entries whatever the ring's size."""
    request, table = table_of(front, entries)
    lay(front, (table, 16 * entries, INDIRECT, 0))
    (used,) = front.rings[0].wait(1)
    assert front.blk().result(request) == (Status.OK, bytes(request.length), 0)
    assert used.length == request.length + 1


@pytest.mark.parametrize("entries", [1025, 65_535])
def test_an_indirect_table_beyond_the_limit_breaks_the_queue(
    server: Server, front: FrontEnd, entries: int
) -> None:
    _, table = table_of(front, entries)
    lay(front, (table, 16 * entries, INDIRECT, 0))
    assert_broken(server, front)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 47, 49, 56, 63, 0xFFFF_FFF0])
def test_an_indirect_table_of_impossible_length_breaks_the_queue(
    server: Server, front: FrontEnd, length: int
) -> None:
    """The first three entries are a good chain; a few bytes more do not make it one."""
    _, table = table_of(front, 3)
    lay(front, (table, length, INDIRECT, 0))
    assert_broken(server, front)


def test_an_indirect_table_inside_another_breaks_the_queue(server: Server, front: FrontEnd) -> None:
    _, inner = table_of(front, 3)
    outer = front.memory.allocate(16)
    front.memory.write(outer, DESCRIPTOR.pack(inner, 48, INDIRECT, 0))
    lay(front, (outer, 16, INDIRECT, 0))
    assert_broken(server, front)


@pytest.mark.parametrize("following", [3, 0xFFFF])
def test_a_next_outside_an_indirect_table_breaks_the_queue(
    server: Server, front: FrontEnd, following: int
) -> None:
    request = write_request(front)
    table = front.memory.allocate(48)
    chain = [
        DESCRIPTOR.pack(request.header, 16, NEXT, 1),
        DESCRIPTOR.pack(request.data, 512, NEXT, 2),
        DESCRIPTOR.pack(request.status, 1, WRITE | NEXT, following),
    ]
    front.memory.write(table, b"".join(chain))
    lay(front, (table, 48, INDIRECT, 0))
    assert_broken(server, front)


def test_a_loop_in_an_indirect_table_breaks_the_queue(server: Server, front: FrontEnd) -> None:
    request = write_request(front)
    table = front.memory.allocate(32)
    loop = [DESCRIPTOR.pack(request.header, 16, NEXT, n) for n in (1, 0)]
    front.memory.write(table, b"".join(loop))
    lay(front, (table, 32, INDIRECT, 0))
    assert_broken(server, front)


def test_an_indirect_table_with_a_next_descriptor_breaks_the_queue(
    server: Server, front: FrontEnd
) -> None:
    request = write_request(front)
    table = front.memory.allocate(32)
    front.rings[0].write_table(table, request.chain()[:2])
    lay(front, (table, 32, INDIRECT | NEXT, 1), (request.status, 1, WRITE, 0))
    assert_broken(server, front)


def test_an_indirect_table_without_its_feature_breaks_the_queue(server: Server) -> None:
    front = server.started(queues=2, never=Feature.INDIRECT_DESC)
    front.rings[0].add_indirect(write_request(front).chain())
    front.rings[0].kick()
    assert_broken(server, front)


def test_an_indirect_table_may_follow_direct_descriptors(front: FrontEnd) -> None:
    request = front.blk().prepare(Type.IN, 0, room=512)
    table = front.memory.allocate(32)
    front.rings[0].write_table(table, request.chain()[1:])
    lay(
        front,
        (request.header, 8, NEXT, 1),
        (request.header + 8, 8, NEXT, 2),
        (table, 32, INDIRECT, 0),
    )
    front.rings[0].wait(1)
    assert front.blk().result(request).data == bytes(512)


def test_the_write_flag_beside_indirect_is_ignored(front: FrontEnd) -> None:
    request = front.blk().prepare(Type.IN, 0, room=512)
    front.rings[0].add_indirect(request.chain(), extra_flags=WRITE)
    front.rings[0].kick()
    front.rings[0].wait(1)
    assert front.blk().result(request).status == Status.OK
