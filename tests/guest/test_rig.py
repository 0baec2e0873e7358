"""The rig reports what goes wrong in a guest, and at once."""

from __future__ import annotations

import pytest
from rig.archive import Archive, ArchiveError, numbers

from .conftest import Boot
from .rig.machine import GuestError
from .rig.packages import SUITES, Packages


def test_the_machine_and_its_kernel_are_those_that_the_tests_are_for(
    boot: Boot, packages: Packages
) -> None:
    expected = SUITES[packages.root.parent.name]
    guest = boot()
    found = guest.qmp.command("query-version")["qemu"]
    assert [found["major"], found["minor"]] >= [*numbers(expected.qemu)]
    assert (found["major"], found["minor"]) == packages.qemu_version
    release = guest.sh("uname -r").strip()
    assert release == packages.kernel_release
    assert numbers(release)[:2] >= numbers(expected.linux)


def test_a_suite_that_is_too_old_is_refused_with_both_versions(packages: Packages) -> None:
    archive = Archive(packages.root.parent.name, packages.root.parent / "apt")
    name = "qemu-system-x86"
    archive.at_least(name, ".".join(map(str, packages.qemu_version)))
    with pytest.raises(ArchiveError, match=rf"has {name} \d:[\d.]+\S*, .* need 99\.1 or newer"):
        archive.at_least(name, "99.1")
    with pytest.raises(ArchiveError, match="has no package no-such-thing"):
        archive.at_least("no-such-thing", "1")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1:11.1.3+ds-1~bpo13+1", (11, 1, 3)),
        ("1:7.2+dfsg-7+deb12u18", (7, 2)),
        ("7.3.4-1", (7, 3, 4)),
        ("2025.02-8", (2025, 2)),
    ],
)
def test_debians_versions_have_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


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
