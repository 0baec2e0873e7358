"""A guest of Xen, for tests on machines that have no Xen."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from .._core import XenGuest as _XenGuest
from ..xen import XenOptions
from ..xen_region import XenFlags, XenRegion

if TYPE_CHECKING:
    from ..xen import SentDesign

Mapping: TypeAlias = Literal["foreign", "grant", "grant-on-demand"]


class XenGuest(_XenGuest):
    """A domain on a hypervisor that is made of files, with a driver's memory in it.

    As here, where rings and buffers are mapped by grants::

        with vu.testing.blk(Disk(), guest=vu.testing.XenGuest("grant")) as disk:
            disk.pwrite(b"x" * 4096, 0)

    A back-end with its ``options()`` does all that it does on Xen, but for the hypervisor's calls:
    those do to memory files what Linux and Xen 4.17 were seen to do to a guest's memory.
    """

    flags: int
    """``XenFlags`` of its memory."""
    domain: int
    """Its number."""

    def __new__(
        cls,
        mapping: Mapping = "grant-on-demand",
        *,
        design: SentDesign = "merged",
        no_advance: int = XenFlags.NO_ADVANCE,
        memory: int = 16 << 20,
        domain: int = 1,
    ) -> Self:
        """``mapping``: how a back-end is to map its memory. ``design``: what it is told by.
        ``no_advance``: the flag for "on demand": ``XenFlags.NO_ADVANCE``, as specified, or
        ``NO_ADVANCE_RUST_VMM``. ``memory``: bytes, in whole pages of 4096.
        """
        flags = _flags(mapping, no_advance)
        guest = super().__new__(cls, flags, domain, design=design, memory=memory)
        guest.flags, guest.domain = flags, domain
        return guest

    def options(self, options: XenOptions | None = None) -> XenOptions:
        """Options of a back-end that serves this guest: ``Backend(xen=guest.options())``.
        ``options``: other than the default ones, design and so on.
        """
        served = copy(options or XenOptions())
        object.__setattr__(served, "_guest", self)  # Private, so that nothing else reaches it.
        return served

    def assert_released(self) -> None:
        """``AssertionError`` if a back-end has pages of its memory mapped."""
        used = self.in_use()
        assert not used, f"pages of the guest are still mapped: {used}"

    @property
    def region(self) -> XenRegion:
        """All its memory, to tell a back-end of. The descriptor is the guest's."""
        return XenRegion(
            guest_address=self.guest_address,
            size=self.memory,
            user_address=self.user_address,
            flags=self.flags,
            domain=self.domain,
            fd=self.fileno(),
        )

    def __repr__(self) -> str:
        return f"<XenGuest domain {self.domain}, flags {self.flags:#x}, {self.memory} bytes>"


def _flags(mapping: Mapping, no_advance: int) -> int:
    flags = {
        "foreign": XenFlags.FOREIGN,
        "grant": XenFlags.GRANT,
        "grant-on-demand": XenFlags.GRANT | no_advance,
    }
    if mapping not in flags:
        raise ValueError(f"mapping is one of {', '.join(flags)}, not {mapping!r}")
    return flags[mapping]
