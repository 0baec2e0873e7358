"""Options for Xen: what is offered, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd

from .disks import RamDisk

XEN_MMAP = 1 << 17


@pytest.mark.parametrize("design", ["auto", "merged", "review", "message"])
def test_xen_mmap_is_offered_in_every_design_and_ordinary_front_ends_are_served(
    vhost_socket: Path, design: Any
) -> None:
    options = vu.XenOptions(design=design, copy_below=0, domain=1)
    with (
        vu.Backend(RamDisk(), socket=vhost_socket, xen=options),
        FrontEnd.connect(str(vhost_socket)).start() as peer,
    ):
        assert peer.protocol_offered & XEN_MMAP
        assert peer.blk().write(0, b"x" * 512).status == 0
        assert peer.blk().read(0, 512).data == b"x" * 512


def test_xen_mmap_is_not_offered_unasked(vhost_socket: Path) -> None:
    with (
        vu.Backend(RamDisk(), socket=vhost_socket),
        FrontEnd.connect(str(vhost_socket)).start() as peer,
    ):
        assert not peer.protocol_offered & XEN_MMAP


@pytest.mark.parametrize(
    "options",
    [{"design": "other"}, {"copy_below": -1}, {"domain": -1}, {"domain": 0x7FF0}],
)
def test_wrong_options_are_refused_with_their_value(options: dict[str, Any]) -> None:
    [value] = options.values()
    with pytest.raises(ValueError, match=str(value)):
        vu.XenOptions(**options)


def test_options_show_what_was_given() -> None:
    assert repr(vu.XenOptions()) == "XenOptions(design='auto')"
    given = vu.XenOptions(design="merged", domain=3)
    assert repr(given) == "XenOptions(design='merged', domain=3)"
