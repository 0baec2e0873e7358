"""The rig reports what goes wrong in a guest, and at once."""

from __future__ import annotations

import pytest

from .conftest import Boot
from .rig.machine import GuestError
from .rig.packages import OLDEST

RUN_WITH = (OLDEST,)


def test_a_script_comes_back_with_its_whole_output_and_its_status(boot: Boot) -> None:
    guest = boot()
    assert guest.sh("seq 1 2000") == "".join(f"{n}\n" for n in range(1, 2001))
    with pytest.raises(GuestError, match="status 3 from: echo why; exit 3\nwhy"):
        guest.sh("echo why; exit 3")


def test_a_guest_that_panics_is_reported_with_its_console(boot: Boot) -> None:
    with pytest.raises(GuestError, match="Kernel panic"):
        boot().sh("echo c >/proc/sysrq-trigger")


def test_a_script_that_takes_too_long_is_an_error(boot: Boot) -> None:
    with pytest.raises(GuestError, match=r"no answer in 0\.1 s"):
        boot().sh("sleep 1000", seconds=0.1)
