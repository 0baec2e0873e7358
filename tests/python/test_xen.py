"""Options for Xen: what is offered, and what is refused before anything starts."""

import logging
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
import vhost_user.xen
from peer.front_end import WANTED, FrontEnd

from .disks import RamDisk

XEN_MMAP = 1 << 17


@pytest.mark.parametrize("design", ["auto", "merged", "review", "message"])
def test_xen_mmap_is_offered_in_every_design_and_ordinary_front_ends_are_served(
    vhost_socket: Path, design: Any
) -> None:
    options = vu.XenOptions(design=design, copy_below=0, domain=1, raw_views=True)
    with (
        vu.Backend(RamDisk(), socket=vhost_socket, xen=options),
        FrontEnd.connect(str(vhost_socket)).start() as peer,
    ):
        assert peer.protocol_offered & XEN_MMAP
        assert peer.blk().write(0, b"x" * 512).status == 0
        assert peer.blk().read(0, 512).data == b"x" * 512


@pytest.mark.parametrize("design", ["auto", "merged", "review", "message"])
def test_a_front_end_that_accepts_xen_mmap_without_knowing_it_is_served_in_every_design(
    vhost_socket: Path, design: Any
) -> None:
    """As QEMU 10.0 does: it accepts all that is offered, and sends plain regions."""
    with (
        vu.Backend(RamDisk(), socket=vhost_socket, xen=vu.XenOptions(design=design)),
        FrontEnd.connect(str(vhost_socket)).start(protocol=WANTED | XEN_MMAP) as peer,
    ):
        assert peer.protocol & XEN_MMAP
        assert peer.blk().write(0, b"x" * 512).status == 0
        assert peer.blk().read(0, 512).data == b"x" * 512


def test_xen_mmap_is_not_offered_unasked(vhost_socket: Path) -> None:
    with (
        vu.Backend(RamDisk(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start() as peer,
    ):
        assert not peer.protocol_offered & XEN_MMAP


@pytest.mark.parametrize("there", [True, False])
def test_devices_of_xen_that_are_missing_are_logged_at_the_start(
    vhost_socket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    there: bool,
) -> None:
    caplog.set_level(logging.INFO, "vhost_user")
    device = tmp_path / "gntdev"
    monkeypatch.setattr(vhost_user.xen, "DEVICES", (str(device),))
    if there:
        device.touch()
    with vu.Backend(RamDisk(), socket=vhost_socket, xen=vu.XenOptions()):
        pass
    said = [record.getMessage() for record in caplog.records]
    expected = f"{vhost_socket}: there is no {device} here: "
    assert [text.startswith(expected) for text in said].count(True) == (not there)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"design": "mergd"}, "design is one of auto, merged, review, message, not 'mergd'"),
        ({"design": None}, "design is one of auto, merged, review, message, not None"),
        ({"copy_below": -1}, "copy_below is 0 to 9223372036854775807, not -1"),
        ({"copy_below": 1 << 63}, "copy_below is 0 to 9223372036854775807, not 922337203685477580"),
        ({"domain": -1}, "domain is 0 to 32751, not -1"),
        ({"domain": 0x7FF0}, "domain is 0 to 32751, not 32752"),
    ],
)
def test_options_out_of_range_are_refused_with_range_and_value(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        vu.XenOptions(**options)


@pytest.mark.parametrize("name", ["copy_below", "domain"])
@pytest.mark.parametrize("value", ["3", 1.5, True, b"3", [3]])
def test_options_that_are_no_numbers_are_refused_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is a whole number .*, not ") as refused:
        vu.XenOptions(**{name: value})
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_raw_views_are_asked_for_by_a_truth_value(value: Any) -> None:
    with pytest.raises(TypeError, match=f"raw_views is True or False, not {value!r}"):
        vu.XenOptions(raw_views=value)


def test_the_ends_of_the_ranges_are_options() -> None:
    least, most = vu.XenOptions(copy_below=0, domain=0), widest_options()
    assert (least.copy_below, least.domain) == (0, 0)
    assert (most.copy_below, most.domain) == (9223372036854775807, 32751)


def test_the_widest_options_are_served(vhost_socket: Path) -> None:
    with vu.Backend(RamDisk(), socket=vhost_socket, xen=widest_options()) as backend:
        assert backend.state == "listening"


def widest_options() -> vu.XenOptions:
    return vu.XenOptions(copy_below=(1 << 63) - 1, domain=0x7FEF)


def test_options_are_values() -> None:
    options = vu.XenOptions(design="merged", domain=3)
    assert options == vu.XenOptions(domain=3, design="merged")
    assert options != vu.XenOptions(design="merged")
    assert len({options, vu.XenOptions(domain=3, design="merged")}) == 1
    assert (
        repr(options) == "XenOptions(design='merged', copy_below=None, domain=3, raw_views=False)"
    )


@pytest.mark.parametrize("name", ["design", "copy_below", "domain", "designs"])
def test_options_stay_as_they_were_checked(name: str) -> None:
    options = vu.XenOptions(domain=3)
    with pytest.raises(AttributeError, match="cannot assign"):
        setattr(options, name, 70000)
    assert options == vu.XenOptions(domain=3)


@pytest.mark.parametrize(
    ("xen", "said"),
    [
        ("merged", "not 'merged': write xen=vu.XenOptions(design='merged')"),
        ("mergd", "not 'mergd': write xen=vu.XenOptions()"),
        (True, "not True: write xen=vu.XenOptions()"),
        (False, "not False: write xen=vu.XenOptions()"),
        ({"domain": 3}, "not {'domain': 3}: write xen=vu.XenOptions()"),
        (vu.XenOptions, "not XenOptions: write xen=vu.XenOptions()"),
    ],
)
def test_a_back_end_takes_no_other_options_for_these(
    vhost_socket: Path, xen: Any, said: str
) -> None:
    with pytest.raises(TypeError) as refused:
        vu.Backend(RamDisk(), socket=vhost_socket, xen=xen)
    assert str(refused.value) == f"xen is a XenOptions, {said}"
