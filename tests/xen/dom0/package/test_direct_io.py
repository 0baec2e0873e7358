"""A disk past the page cache, on memory that the kernel does no direct I/O on, and on other."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from ..backend import BackendProcess
from ..design import NO_ADVANCE
from ..guest import FRAMES, Guest
from ..layout import FOREIGN_LAYOUT, IN_ADVANCE, Layout, on_demand
from ..workload import Workload
from .conftest import connector

DEVICE = "/dev/ram0"


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackendProcess]:
    with BackendProcess(tmp_path_factory.mktemp("direct"), device=DEVICE) as process:
        yield process


@pytest.mark.parametrize("socket", ["direct", "python"])
@pytest.mark.parametrize("layout", [FOREIGN_LAYOUT, IN_ADVANCE, on_demand(NO_ADVANCE)], ids=str)
def test_requests_past_the_page_cache_move_the_right_bytes(
    guest: Guest, direct: BackendProcess, layout: Layout, socket: str
) -> None:
    """By a ``FileDisk``, and by Python that has requests moved to a descriptor of its own."""
    image = direct.image(socket)
    with connector(guest, direct)(layout, socket=socket) as front:
        work = Workload(front.start(), image.read_bytes())
        work.run(500)
        work.flush()
        assert image.read_bytes() == work.content


def test_the_kernel_does_no_direct_io_on_a_foreign_mapping(guest: Guest) -> None:
    """Or else the test above shows nothing."""
    fd = os.open(DEVICE, os.O_RDONLY | os.O_DIRECT)
    try:
        with guest.map(FRAMES[:1]) as area, pytest.raises(OSError, match=rf"Errno {errno.EFAULT}"):
            os.preadv(fd, [area], 0)
    finally:
        os.close(fd)
