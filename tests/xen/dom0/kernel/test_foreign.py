"""What the kernel does with foreign mappings of a real guest."""

from __future__ import annotations

import errno

from ..guest import FRAMES, Guest
from ..ioctl import PAGE
from ..privcmd import map_batch, map_frames, restrict

LOW, HIGH = FRAMES[0], FRAMES[-1]
HOLE = 0x5_0000
NO_SUCH_DOMAIN = 999


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


def test_a_restricted_descriptor_maps_its_domain_alone(guest: Guest, privcmd: int) -> None:
    restrict(privcmd, guest.domain)
    map_frames(privcmd, guest.domain, [LOW]).close()
    with Guest(range(0x100, 0x104)) as other:
        area, error, _ = map_batch(privcmd, other.domain, [0x100])
        area.close()
        assert error == errno.EPERM
