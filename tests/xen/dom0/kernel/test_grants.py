"""What the kernel does with grants of a real guest."""

from __future__ import annotations

import errno
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..gntdev import READ, Granted, Piece, copy_from, copy_to
from ..guest import FRAMES, Guest
from ..ioctl import PAGE, device

FIRST = 16
READ_ONLY = 600
FOR_ANOTHER = 601
NEVER_GRANTED = 1500
OUTSIDE_THE_TABLE = 5000
GENERAL_ERROR, BAD_REFERENCE = -1, -3


@pytest.fixture(autouse=True, scope="module")
def granted(guest: Guest) -> Iterator[None]:
    for place in range(256):
        guest.grants.grant(FIRST + place, FRAMES[place])
    guest.grants.grant(READ_ONLY, FRAMES[300], read_only=True)
    guest.grants.grant(FOR_ANOTHER, FRAMES[301], to=77)
    yield
    guest.grants.revoke(*range(FIRST, FIRST + 256), READ_ONLY, FOR_ANOTHER)


def paravirtual() -> bool:
    """Whether this dom0 changes its page tables by hypercalls."""
    kind = Path("/sys/hypervisor/guest_type").read_text().strip()
    return kind == "PV" and platform.machine() == "x86_64"


def mappings_of_one_reference() -> int:
    """How often Xen lets one domain map one reference."""
    return 64 if paravirtual() else 128


def killed_while_it_maps(map_pages: Callable[[], object]) -> None:
    """Runs ``map_pages`` in another process, which is killed with what it has mapped."""
    child = os.fork()
    if child == 0:
        try:
            _kept = map_pages()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("count", [1, 16, 256])
def test_granted_pages_are_the_guests(guest: Guest, gntdev: int, count: int) -> None:
    with Granted(gntdev, guest.domain, range(FIRST, FIRST + count)) as area:
        area[-4:] = b"last"
        assert guest.grants.in_use() == list(range(FIRST, FIRST + count))
    assert guest.read(FRAMES[count - 1], 4, PAGE - 4) == b"last"


def test_references_may_come_in_any_order(guest: Guest, gntdev: int) -> None:
    guest.write(FRAMES[9], b"nine")
    guest.write(FRAMES[4], b"four")
    with Granted(gntdev, guest.domain, [FIRST + 9, FIRST + 4]) as area:
        assert (area[:4], area[PAGE : PAGE + 4]) == (b"nine", b"four")


def test_a_read_only_grant_is_mapped_for_reading_alone(guest: Guest, gntdev: int) -> None:
    guest.write(FRAMES[300], b"look")
    with Granted(gntdev, guest.domain, [READ_ONLY], READ) as area:
        assert area[:4] == b"look"
    assert refusal(gntdev, guest, READ_ONLY) == errno.EINVAL


@pytest.mark.parametrize("reference", [NEVER_GRANTED, OUTSIDE_THE_TABLE, FOR_ANOTHER])
def test_a_reference_that_is_not_ours_fails_the_whole_call(
    guest: Guest, gntdev: int, reference: int
) -> None:
    assert refusal(gntdev, guest, FIRST, reference) == errno.EINVAL
    assert guest.grants.in_use() == []


def test_a_revoked_reference_is_refused(guest: Guest, gntdev: int) -> None:
    guest.grants.grant(700, FRAMES[302])
    Granted(gntdev, guest.domain, [700]).close()
    guest.grants.revoke(700)
    assert refusal(gntdev, guest, 700) == errno.EINVAL


def test_a_page_that_is_mapped_cannot_be_revoked(guest: Guest, gntdev: int) -> None:
    with Granted(gntdev, guest.domain, [FIRST]), pytest.raises(ValueError, match="in use"):
        guest.grants.revoke(FIRST)


def test_one_reference_is_mapped_so_often_and_no_more(guest: Guest, gntdev: int) -> None:
    most = mappings_of_one_reference()
    Granted(gntdev, guest.domain, [FIRST] * most).close()
    assert refusal(gntdev, guest, *[FIRST] * (most + 1)) == errno.EINVAL


def test_a_process_that_is_killed_leaves_nothing_mapped(guest: Guest) -> None:
    killed_while_it_maps(lambda: Granted(device("gntdev"), guest.domain, [FIRST]))
    assert guest.grants.in_use() == []


def test_pages_stay_mapped_when_the_index_was_given_back(guest: Guest, gntdev: int) -> None:
    granted = Granted(gntdev, guest.domain, [FIRST, FIRST + 1])
    granted.forget()
    with Granted(gntdev, guest.domain, [FIRST + 2]) as other:
        granted.area[PAGE : PAGE + 5] = b"alive"
        other[:5] = b"other"
        assert guest.grants.in_use() == [FIRST, FIRST + 1, FIRST + 2]
    assert guest.read(FRAMES[1], 5) == b"alive"
    granted.close()
    assert guest.grants.in_use() == []


def test_a_killed_process_leaves_nothing_mapped_on_a_descriptor_that_lives_if_it_forgot_the_index(
    guest: Guest, gntdev: int
) -> None:
    def map_and_forget() -> Granted:
        granted = Granted(gntdev, guest.domain, [FIRST])
        granted.forget()
        return granted

    killed_while_it_maps(map_and_forget)
    assert guest.grants.in_use() == []


def test_a_killed_process_may_leave_pages_mapped_on_a_descriptor_that_lives(guest: Guest) -> None:
    """A kernel that is not paravirtual keeps them for the index, until the last descriptor goes.

    So a back-end gives the index back as soon as it has mapped: the descriptor is a front-end's.
    """
    shared = device("gntdev")
    killed_while_it_maps(lambda: Granted(shared, guest.domain, [FIRST]))
    left = guest.grants.in_use()
    os.close(shared)
    assert left == ([] if paravirtual() else [FIRST])
    assert guest.grants.in_use() == []


def test_a_copy_takes_the_bytes_without_a_mapping(guest: Guest, gntdev: int) -> None:
    guest.write(FRAMES[2], b"twotwo", 10)
    guest.write(FRAMES[3], b"three")
    pieces = [Piece(FIRST + 2, 13, 3), Piece(FIRST + 3, 0, 5)]
    assert copy_from(gntdev, guest.domain, pieces) == (b"twothree", [0, 0])
    assert copy_to(gntdev, guest.domain, Piece(FIRST + 5, 4000, 4), b"here") == 0
    assert guest.read(FRAMES[5], 4, 4000) == b"here"


def test_a_copy_says_for_each_piece_what_went_wrong(guest: Guest, gntdev: int) -> None:
    pieces = [Piece(at, 0, 4) for at in (NEVER_GRANTED, OUTSIDE_THE_TABLE, FIRST)]
    assert copy_from(gntdev, guest.domain, pieces)[1] == [GENERAL_ERROR, BAD_REFERENCE, 0]
    assert copy_to(gntdev, guest.domain, Piece(READ_ONLY, 0, 4), b"no!!") < 0


def refusal(fd: int, guest: Guest, *references: int) -> int:
    """The error number with which the references are refused, 0 when they are mapped."""
    try:
        Granted(fd, guest.domain, references).close()
    except OSError as error:
        return error.errno or -1
    return 0
