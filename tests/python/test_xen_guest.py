"""Devices in Python on a guest of Xen, without Xen: every mapping, told of in every design."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from vhost_user.testing import BlkFactory, XenGuest

from .disks import SIZE, BatchDisk, RamDisk

MAPPINGS = {
    "foreign": {"mapping": "foreign"},
    "grant": {"mapping": "grant"},
    "on-demand": {"mapping": "grant-on-demand", "no_advance": 0x100},
    "on-demand-rust-vmm": {"mapping": "grant-on-demand", "no_advance": 0x8},
}
DESIGNS = ("merged", "review", "message")

PACKED_IN_ORDER = {"packed": True, "in_order": True}

FIRST_REFERENCE = 16
FIRST_FRAME = 5 << 18
"""Of the guest: where its memory begins."""


class Deferring(RamDisk):
    """Answers on a thread of its own, in the opposite order."""

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        kept = [request.defer() for request in batch]
        threading.Thread(target=self._answer, args=(kept,)).start()

    def _answer(self, kept: list[vu.BlockRequest]) -> None:
        for request in reversed(kept):
            place = self.mem[request.offset : request.offset + request.length]
            if request.op == "read":
                request.copy_from(place)
            else:
                request.copy_to(place)
            request.complete()


@pytest.mark.parametrize("device", [RamDisk, BatchDisk, Deferring])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_bytes_arrive_and_nothing_stays_mapped(
    mapping: str, design: Any, device: Callable[[], RamDisk]
) -> None:
    options: Any = MAPPINGS[mapping]
    guest = XenGuest(**options, design=design)
    served, content = device(), os.urandom(SIZE)
    with vu.testing.blk(served, guest=guest) as disk:
        disk.pwrite(content[:-512], 0)
        disk.pwrite(content[-512:], SIZE - 512)
        assert served.mem == content
        assert disk.pread(SIZE, 0) == content
        assert disk.pread(512, 4096 + 512) == content[4608:5120]
        used = guest.in_use()
        if options["mapping"] == "grant-on-demand":
            assert used == [FIRST_REFERENCE], "the ring's page, and no buffer's"
        else:
            first = FIRST_FRAME if mapping == "foreign" else FIRST_REFERENCE
            assert used == list(range(first, first + guest.memory // 4096))
    assert guest.in_use() == []


@pytest.mark.parametrize("rings", [{"in_order": True}, {"packed": True}, PACKED_IN_ORDER], ids=str)
@pytest.mark.parametrize("raw_views", [False, True])
@pytest.mark.parametrize("mapping", ["foreign", "grant", "grant-on-demand"])
def test_a_device_sees_no_difference_between_rings_of_different_formats(
    mapping: Any, raw_views: bool, rings: Any
) -> None:
    guest, options = XenGuest(mapping), vu.XenOptions(raw_views=raw_views)
    served, content = Deferring(), os.urandom(SIZE)
    with vu.testing.blk(served, guest=guest, xen=options, queue_size=32, **rings) as disk:
        for turn in range(4):
            disk.pwrite(content[turn:] + content[:turn], 0)
            assert disk.pread(SIZE, 0) == served.mem == content[turn:] + content[:turn]
        if mapping == "grant-on-demand":
            assert guest.in_use() == [FIRST_REFERENCE], "the ring's page, and no buffer's"
    assert guest.in_use() == []


def test_the_back_ends_options_hold_beside_the_guest() -> None:
    class Sees(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            super().read(offset, buf)
            seen.append(len(guest.in_use()))

    guest = XenGuest()
    for raw_views, pages in ((False, [1]), (True, [17])):
        seen: list[int] = []
        options = vu.XenOptions(raw_views=raw_views)
        with vu.testing.blk(Sees(), guest=guest, xen=options) as disk:
            disk.pread(65536, 0)
        assert seen == pages, "the ring's page, and on request those of the buffer"


@pytest.mark.parametrize("design", ["auto", "merged", "review", "message"])
def test_a_back_end_takes_the_design_that_it_was_told_and_no_other(design: Any) -> None:
    designs: tuple[Any, ...] = ("merged", "review", "message")
    taken = set()
    for sent in designs:
        try:
            guest, xen = XenGuest(design=sent), vu.XenOptions(design=design)
            with vu.testing.blk(RamDisk(), guest=guest, xen=xen) as disk:
                disk.pwrite(b"x" * 512, 0)
        except vu.MappingError:
            continue
        taken.add(sent)
    assert taken == (set(designs) if design == "auto" else {design})


def test_a_back_end_for_one_domain_refuses_all_others() -> None:
    for domain in (4, 5, 6):
        guest, xen = XenGuest(domain=domain), vu.XenOptions(domain=5)
        try:
            with vu.testing.blk(RamDisk(), guest=guest, xen=xen) as disk:
                disk.pwrite(b"x" * 512, 0)
        except vu.MappingError:
            assert domain != 5
        else:
            assert domain == 5


@pytest.mark.parametrize("mapping", ["foreign", "grant", "grant-on-demand"])
def test_a_driver_that_connects_again_finds_its_guest_as_it_was(mapping: Any) -> None:
    with vu.testing.blk(RamDisk(), guest=XenGuest(mapping)) as disk:
        disk.pwrite(b"x" * 65536, 0)
        disk.reconnect()
        assert disk.pread(65536, 0) == b"x" * 65536


@pytest.mark.parametrize("mapping", ["foreign", "grant-on-demand"])
def test_several_queues_lie_in_one_guest(mapping: Any) -> None:
    device = RamDisk(num_queues=4)
    with vu.testing.blk(device, guest=XenGuest(mapping), num_queues=4, queue_size=16) as disk:
        for turn in range(8):
            disk.pwrite(bytes([turn]) * 8192, turn * 8192)
        assert disk.pread(65536, 0) == b"".join(bytes([turn]) * 8192 for turn in range(8))


def test_the_fixture_takes_a_guest_and_an_exception_is_still_the_cause(
    vhost_blk: BlkFactory,
) -> None:
    class Broken(RamDisk):
        def read(self, offset: int, buf: memoryview, /) -> None:
            raise OSError(5, "worn out")

    guest = XenGuest("grant")
    disk = vhost_blk(Broken(), guest=guest)
    with pytest.raises(vu.RequestError) as failed:
        disk.pread(512, 0)
    assert "worn out" in str(failed.value.__cause__)


def test_memory_that_is_still_mapped_at_the_end_is_reported(vhost_socket: Path) -> None:
    guest = XenGuest("grant", memory=8192)
    disk = vu.Backend(RamDisk(), socket=vhost_socket, xen=guest.options())
    with disk, vu.Frontend.connect(vhost_socket, xen=True) as other:
        other.add_xen_region(guest.region)
        with pytest.raises(AssertionError, match=r"still mapped: \[16, 17\]"):
            guest.assert_released()
    guest.assert_released()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mapping": "other"}, "foreign, grant, grant-on-demand, not 'other'"),
        ({"design": "auto"}, "'merged', 'review', 'message', not 'auto'"),
        ({"memory": 4097}, "4097 bytes"),
        ({"memory": 0}, "memory is 4096 to 17179869184, not 0"),
        ({"memory": -4096}, "memory is 4096 to 17179869184, not -4096"),
        ({"domain": -1}, "domain is 0 to 32751, not -1"),
        ({"domain": 0x7FF0}, "domain is 0 to 32751, not 32752"),
        ({"no_advance": 0}, "no_advance is 0x100 or 0x8, not 0"),
        ({"no_advance": 0x108}, "no_advance is 0x100 or 0x8, not 264"),
    ],
)
def test_a_guest_that_cannot_be_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        XenGuest(**options)


def test_a_guest_shows_what_it_is() -> None:
    guest = XenGuest(no_advance=vu.XenFlags.NO_ADVANCE_RUST_VMM, memory=8192, domain=7)
    assert repr(guest) == "<XenGuest domain 7, flags 0xa, 8192 bytes>"


def test_a_second_disk_on_a_guest_is_refused_and_the_first_goes_on() -> None:
    guest = XenGuest("grant")
    with vu.testing.blk(RamDisk(), guest=guest) as disk:
        with (
            pytest.raises(ValueError, match="is another driver's: 4096 of its pages are mapped"),
            vu.testing.blk(RamDisk(), guest=guest),
        ):
            pass
        disk.pwrite(b"x" * 512, 0)
        assert disk.pread(512, 0) == b"x" * 512


def test_options_of_a_guest_are_not_those_of_the_host_and_stay_its_own() -> None:
    guest, other = XenGuest(), XenGuest()
    assert guest.options() == guest.options()
    assert guest.options() not in (vu.XenOptions(), other.options())
    assert "<XenGuest domain 1" in repr(guest.options())
    merged = replace(guest.options(), design="merged")
    assert merged == guest.options(vu.XenOptions(design="merged"))
    with vu.testing.blk(RamDisk(), guest=guest, xen=merged) as disk:
        assert disk.pread(512, 0) == bytes(512)
