"""What a wheel's name promises."""

import pytest

from release.check import version
from release.kinds import kind_of, kinds


def test_each_name_leads_back_to_its_wheel() -> None:
    for libc in ("glibc", "musl"):
        for kind in kinds(libc):
            assert kind_of(kind.name("1.2.3")) == kind


def test_the_names_are_those_that_installers_look_for() -> None:
    assert {kind.name("0.1.0") for kind in kinds("glibc")} >= {
        "vhost_user-0.1.0-cp311-abi3-manylinux_2_28_x86_64.whl",
        "vhost_user-0.1.0-cp315-abi3.abi3t-manylinux_2_28_aarch64.whl",
        "vhost_user-0.1.0-cp314-cp314t-manylinux_2_28_x86_64.whl",
    }
    assert {kind.name("0.1.0") for kind in kinds("musl")} >= {
        "vhost_user-0.1.0-cp311-abi3-musllinux_1_2_aarch64.whl"
    }


def test_a_wheel_of_the_building_machine_alone_is_none_to_hand_out() -> None:
    with pytest.raises(ValueError, match="no wheel of this package"):
        kind_of("vhost_user-0.1.0-cp311-abi3-linux_x86_64.whl")


def test_the_tag_that_auditwheel_finds_is_compared_as_numbers() -> None:
    assert version("manylinux_2_5_x86_64") == (2, 5)
    assert version("linux_x86_64") is None
