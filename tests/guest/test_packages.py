"""QEMU and the kernel are those that the tests are for."""

from __future__ import annotations

import pytest
from rig.archive import Archive, ArchiveError, numbers

from .conftest import Boot
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
