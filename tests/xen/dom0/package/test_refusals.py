"""What a front-end may get wrong about memory, refused for real, and what the log says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ..backend import BackendProcess
from ..calls import GrantCalls
from ..design import FOREIGN, GRANT, Design, Kind, Offer
from ..guest import FRAMES, Guest
from ..ioctl import PAGE
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE
from ..memory import FIRST_REFERENCE, apart, bus_of
from ..workload import Workload
from .conftest import Connect, connector, once, told

START = FRAMES[0] * PAGE
HOLE = 0x5000_0000
NO_SUCH_DOMAIN = 999
NEVER_GRANTED = 1500
OUTSIDE_THE_TABLE = 100_000


@pytest.fixture(autouse=True, scope="module")
def the_back_end_lives_and_serves(guest: Guest, backend: BackendProcess) -> Iterator[None]:
    """After these tests the same process serves the next front-end."""
    yield
    assert backend.process.poll() is None, backend.log()
    with connector(guest, backend)(FOREIGN_LAYOUT) as front:
        Workload(front.start(), backend.image("file").read_bytes()).run(16)


def case(
    name: str, why: str, region: Callable[[int], tuple[int, int, Kind]], *, message: bool = False
) -> object:
    """``region``: address, size and kind for a guest; ``why``: what the log says of it.

    ``message``: the message itself is wrong, and the kernel is not asked.
    """
    return pytest.param(region, why, id=name, marks=[pytest.mark.once] if message else [])


CASES = [
    case(
        "no-domain",
        f"there is no domain {NO_SUCH_DOMAIN}",
        lambda _: (START, PAGE, Kind(FOREIGN, NO_SUCH_DOMAIN)),
    ),
    case(
        "hole",
        f"domain {{}} has no page at {HOLE:#x}",
        lambda domain: (HOLE, PAGE, Kind(FOREIGN, domain)),
    ),
    case(
        "hole-at-the-end",
        "domain {} has no page at 0x900000",
        lambda domain: (START, len(FRAMES) * PAGE, Kind(FOREIGN, domain)),
    ),
    case(
        "not-granted",
        f"domain {{}} does not grant the 1 pages from reference {NEVER_GRANTED} on",
        lambda domain: (bus_of(NEVER_GRANTED), PAGE, Kind(GRANT, domain)),
    ),
    case(
        "outside-the-table",
        f"domain {{}} does not grant the 1 pages from reference {OUTSIDE_THE_TABLE} on",
        lambda domain: (bus_of(OUTSIDE_THE_TABLE), PAGE, Kind(GRANT, domain)),
    ),
    case(
        "no-grant-address",
        f"guest address {START:#x}, 0x1000 bytes: grants lie from bit 63 on",
        lambda domain: (START, PAGE, Kind(GRANT, domain)),
        message=True,
    ),
    case(
        "both-kinds",
        "xen mmap flags",
        lambda domain: (START, PAGE, Kind(FOREIGN | GRANT, domain)),
        message=True,
    ),
    case(
        "reserved-domain",
        "xen domain id out of range: 32752 is not 0 to 32751",
        lambda _: (START, PAGE, Kind(FOREIGN, 0x7FF0)),
        message=True,
    ),
]


@pytest.mark.parametrize("design", [Design.MERGED, once(Design.REVIEW)], ids=str)
@pytest.mark.parametrize(("region", "why"), CASES)
def test_a_region_that_cannot_be_mapped_is_refused(
    guest: Guest,
    backend: BackendProcess,
    connect: Connect,
    design: Design,
    region: Callable[[int], tuple[int, int, Kind]],
    why: str,
) -> None:
    bus, size, kind = region(guest.domain)
    with connect(FOREIGN_LAYOUT, design) as front:
        front.negotiate()
        with told(backend, "refused: SET_MEM_TABLE: ", why.format(guest.domain)):
            assert front.refuses_table(Offer(bus, size, apart(bus), kind))
        assert guest.grants.in_use() == []
        assert front.lives()


@pytest.mark.once
def test_an_mmap_offset_is_refused(guest: Guest, backend: BackendProcess, connect: Connect) -> None:
    with connect(FOREIGN_LAYOUT) as front, told(backend, "mmap offset 0x1000"):
        front.negotiate()
        kind = Kind(FOREIGN, guest.domain)
        assert front.refuses_table(Offer(START, PAGE, apart(START), kind, offset=PAGE))


def test_one_bad_region_among_good_ones_leaves_none_mapped(
    guest: Guest, backend: BackendProcess, connect: Connect
) -> None:
    """Nor does it leave a list of pages in the device that the front-end keeps open."""
    with connect(IN_ADVANCE) as front, GrantCalls(backend.process.pid) as calls:
        front.negotiate()
        kind = Kind(GRANT, guest.domain)
        good = Offer(bus_of(FIRST_REFERENCE), 16 * PAGE, apart(START), kind)
        bad = Offer(bus_of(NEVER_GRANTED), PAGE, apart(HOLE), kind)
        with told(backend, f"from reference {NEVER_GRANTED} on"):
            assert front.refuses_table(good, bad)
        assert guest.grants.in_use() == []
    assert calls.counts["map"] == calls.counts["unmap"] > 1
    assert calls.counts["release"] == 1


def test_what_was_refused_is_no_obstacle_to_what_is_right(
    guest: Guest, backend: BackendProcess, connect: Connect
) -> None:
    with connect(FOREIGN_LAYOUT) as front:
        front.negotiate()
        assert front.refuses_table(Offer(HOLE, PAGE, apart(HOLE), Kind(FOREIGN, guest.domain)))
        front.add_ring()
        front.share_memory().start_ring()
        Workload(front, backend.image("file").read_bytes()).run(16)
