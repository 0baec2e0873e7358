"""Whose descriptor is used: the one that is passed, or the back-end's own where that is wrong."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..backend import BackendProcess
from ..calls import GrantCalls
from ..design import FOREIGN, GRANT, NO_ADVANCE, Kind, Offer
from ..guest import FRAMES, Guest
from ..ioctl import PAGE
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE, Layout, on_demand
from ..memory import FIRST_REFERENCE, apart, bus_of
from ..privcmd import map_batch
from ..workload import Workload
from .conftest import Connect, connector, told

NOBODY = 65534
START = FRAMES[0] * PAGE
LAYOUTS = [FOREIGN_LAYOUT, IN_ADVANCE, on_demand(NO_ADVANCE)]
LISTS = ["/proc/misc", "/sys/class/misc"]
"""Where the kernel tells the devices' numbers."""
WRONG = [(FOREIGN, START, "gntdev"), (GRANT, bus_of(FIRST_REFERENCE), "privcmd")]


@pytest.fixture(scope="module")
def stranger() -> Iterator[BackendProcess]:
    """A back-end that may open none of Xen's devices."""
    with (
        tempfile.TemporaryDirectory() as directory,
        BackendProcess(Path(directory), user=NOBODY) as process,
    ):
        yield process


@pytest.fixture(scope="module", params=[LISTS[:1], LISTS], ids=["no-list", "no-list-no-entries"])
def shut_in(request: pytest.FixtureRequest) -> Iterator[BackendProcess]:
    """A back-end that does not see all that tells which device is which."""
    with (
        tempfile.TemporaryDirectory() as directory,
        BackendProcess(Path(directory), hidden=request.param) as process,
    ):
        yield process


@pytest.mark.once
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_devices_are_recognised_where_the_kernels_lists_are_hidden(
    guest: Guest, shut_in: BackendProcess, layout: Layout
) -> None:
    with connector(guest, shut_in)(layout) as front:
        Workload(front.start(), shut_in.image("file").read_bytes()).run(16)


@pytest.mark.once
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_back_end_without_rights_uses_what_it_is_passed(
    guest: Guest, stranger: BackendProcess, layout: Layout
) -> None:
    with connector(guest, stranger)(layout) as front:
        work = Workload(front.start(), stranger.image("file").read_bytes())
        work.run(64)
        work.flush()
        assert stranger.image("file").read_bytes() == work.content


@pytest.mark.once
@pytest.mark.parametrize(("flags", "bus", "name"), WRONG, ids=["foreign", "grant"])
def test_a_back_end_without_rights_refuses_a_descriptor_of_another_file(
    guest: Guest, stranger: BackendProcess, flags: int, bus: int, name: str
) -> None:
    with connector(guest, stranger)(IN_ADVANCE) as front:
        front.negotiate()
        offer = Offer(bus, PAGE, apart(bus), Kind(flags, guest.domain))
        assert front.refuses_table(offer, name=name)
        assert not front.refuses_table(offer)


@pytest.mark.once
@pytest.mark.parametrize(("flags", "bus", "name"), WRONG, ids=["foreign", "grant"])
def test_a_back_end_with_rights_opens_the_device_itself(
    guest: Guest, connect: Connect, flags: int, bus: int, name: str
) -> None:
    with connect(IN_ADVANCE) as front:
        front.negotiate()
        offer = Offer(bus, PAGE, apart(bus), Kind(flags, guest.domain))
        assert not front.refuses_table(offer, name=name)


def test_a_descriptor_for_foreign_mapping_reaches_the_named_domain_alone_from_then_on(
    backend: BackendProcess, connect: Connect
) -> None:
    with connect(FOREIGN_LAYOUT) as front, Guest(range(0x100, 0x104)) as other:
        front.keeps_devices = True
        front.start()
        (passed,) = front.kept
        area, error, _ = map_batch(passed, other.domain, [0x100])
        area.close()
        assert error == errno.EPERM
        offer = Offer(START, PAGE, apart(START), Kind(FOREIGN, other.domain))
        why = f"its descriptor is restricted to another domain than {other.domain}"
        with told(backend, "refused: SET_MEM_TABLE: ", why):
            assert front.refuses_table_with([passed], offer)
        Workload(front, backend.image("file").read_bytes()).run(16)


def test_a_descriptor_is_restricted_before_anything_is_mapped_by_it(
    backend: BackendProcess, connect: Connect
) -> None:
    with connect(FOREIGN_LAYOUT) as front:
        with GrantCalls(backend.process.pid) as calls:
            front.start()
        assert calls.foreign == ["restrict", "map"]
