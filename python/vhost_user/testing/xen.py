"""A guest of Xen, for tests on machines that have no Xen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from .. import arguments
from .._core import XenGuest as _XenGuest
from ..xen import FIRST_RESERVED, XenOptions, checked
from ..xen_region import XenFlags, XenRegion

if TYPE_CHECKING:
    from ..xen import SentDesign

Mapping: TypeAlias = Literal["foreign", "grant", "grant-on-demand"]

NO_ADVANCE: Final = (XenFlags.NO_ADVANCE, XenFlags.NO_ADVANCE_RUST_VMM)
"""The flags for "on demand"."""

PAGE: Final = 4096
"""Bytes of a page."""

MOST_MEMORY: Final = 1 << 34
"""Bytes: the grants of more take long to make."""


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
        ``NO_ADVANCE_RUST_VMM``. ``memory``: bytes, in whole pages of 4096. ``domain``: its number,
        0 to 32751. One driver at a time uses it: its rings and buffers fill the memory.
        """
        flags = _flags(mapping, no_advance)
        arguments.number_in("memory", memory, "a whole number", PAGE, MOST_MEMORY)
        arguments.number_in("domain", domain, "a whole number", 0, FIRST_RESERVED - 1)
        guest = super().__new__(cls, flags, domain, design=design, memory=memory)
        guest.flags, guest.domain = flags, domain
        return guest

    def options(self, options: XenOptions | None = None) -> XenOptions:
        """Options of a back-end that serves this guest: ``Backend(xen=guest.options())``.
        ``options``: other than the default ones, design and so on.
        """
        return replace(checked(XenOptions() if options is None else options), _guest=self)

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
    if no_advance not in NO_ADVANCE:
        wanted = " or ".join(f"{flag:#x}" for flag in NO_ADVANCE)
        raise ValueError(f"no_advance is {wanted}, not {no_advance!r}")
    flags: dict[str, int] = {
        "foreign": XenFlags.FOREIGN,
        "grant": XenFlags.GRANT,
        "grant-on-demand": XenFlags.GRANT | no_advance,
    }
    if not isinstance(mapping, str) or mapping not in flags:
        raise ValueError(f"mapping is one of {', '.join(flags)}, not {mapping!r}")
    return flags[mapping]
