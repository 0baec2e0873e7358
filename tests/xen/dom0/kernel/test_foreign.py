"""What the kernel does with foreign mappings of a real guest."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from ..guest import FRAMES, Guest
from ..ioctl import PAGE, address
from ..privcmd import map_batch, map_frames, restrict

LOW, HIGH = FRAMES[0], FRAMES[-1]
HOLE = 0x5_0000
NO_SUCH_DOMAIN = 999
MAP_FIXED = 0x10


def test_what_one_mapping_writes_another_reads(guest: Guest, privcmd: int) -> None:
    guest.write(LOW, b"low", 100)
    with map_frames(privcmd, guest.domain, [LOW + 1, LOW]) as area:
        assert area[PAGE + 100 : PAGE + 103] == b"low"
        area[7:12] = b"moved"
    assert guest.read(LOW + 1, 5, 7) == b"moved"


def test_memory_behind_4_gib_is_reached(guest: Guest) -> None:
    guest.write(HIGH, b"high")
    assert HIGH * PAGE > 4 << 30
    assert guest.read(HIGH, 4) == b"high"


def test_all_memory_is_mapped_by_one_call(guest: Guest) -> None:
    with guest.map(guest.frames) as area:
        assert len(area) == len(FRAMES) * PAGE


def test_a_hole_is_an_error_of_its_page_and_the_call_succeeds(guest: Guest, privcmd: int) -> None:
    area, error, pages = map_batch(privcmd, guest.domain, [LOW, HOLE, LOW + 2])
    area.close()
    assert error == 0
    assert pages == [0, errno.EINVAL, 0]


def test_an_unknown_domain_is_an_error_of_each_page_and_the_call_succeeds(privcmd: int) -> None:
    area, error, pages = map_batch(privcmd, NO_SUCH_DOMAIN, [LOW, LOW + 1])
    area.close()
    assert error == 0
    assert pages == [errno.ESRCH] * 2


def test_a_balloon_makes_a_hole(privcmd: int) -> None:
    with Guest(range(0x100, 0x110)) as guest:
        guest.take_away([0x104])
        pages = map_batch(privcmd, guest.domain, [0x103, 0x104, 0x105]).pages
        assert pages == [0, errno.EINVAL, 0]


def test_a_page_stays_mapped_when_a_balloon_takes_it(privcmd: int) -> None:
    with Guest(range(0x100, 0x110)) as guest:
        guest.write(0x104, b"kept")
        with map_frames(privcmd, guest.domain, [0x103, 0x104]) as area:
            guest.take_away([0x104])
            assert area[PAGE : PAGE + 4] == b"kept"


def test_a_page_stays_mapped_when_its_domain_ends(privcmd: int) -> None:
    with Guest(range(0x100, 0x110)) as guest:
        guest.write(0x104, b"kept")
        area = map_frames(privcmd, guest.domain, [0x104])
    with area:
        assert area[:4] == b"kept"


def test_zeroes_can_take_the_place_of_a_mapping(guest: Guest, privcmd: int) -> None:
    guest.write(LOW, b"theirs")
    with map_frames(privcmd, guest.domain, [LOW, LOW + 1]) as area:
        put_zeroes(area)
        assert area[:] == bytes(2 * PAGE)
        area[:4] = b"ours"
    assert guest.read(LOW, 6) == b"theirs"


def put_zeroes(area: mmap.mmap) -> None:
    """Put private zeroes in the place of all of an area."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    map_memory = ctypes.CDLL(None, use_errno=True).mmap
    map_memory.restype = ctypes.c_void_p
    place = (ctypes.c_void_p(address(area)), ctypes.c_size_t(len(area)))
    how = (mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, ctypes.c_long(0))
    assert map_memory(*place, *how) == address(area), os.strerror(ctypes.get_errno())


def test_a_restricted_descriptor_maps_its_domain_alone(guest: Guest, privcmd: int) -> None:
    restrict(privcmd, guest.domain)
    map_frames(privcmd, guest.domain, [LOW]).close()
    with Guest(range(0x100, 0x104)) as other:
        area, error, _ = map_batch(privcmd, other.domain, [0x100])
        area.close()
        assert error == errno.EPERM
