"""Serving front-ends on Xen."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final

if TYPE_CHECKING:
    from .testing import XenGuest

SentDesign: TypeAlias = Literal["merged", "review", "message"]
Design: TypeAlias = Literal["auto"] | SentDesign

DESIGNS: Final[tuple[Design, ...]] = ("auto", "merged", "review", "message")

FIRST_RESERVED = 0x7FF0
"""Ids from here on name no domain: ``DOMID_FIRST_RESERVED`` of Xen's ``public/xen.h``."""

MOST_BYTES = (1 << 63) - 1
"""The largest limit in bytes."""

DEVICES: Final = ("/dev/xen/privcmd", "/dev/xen/gntdev")
"""The hypervisor's devices: for foreign mapping, and for grants."""


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class XenOptions:
    """How a ``Backend`` serves front-ends on Xen. Ordinary front-ends are served too.

    ``Backend(device, socket=path, xen=XenOptions())`` offers XEN_MMAP, and maps the memory of the
    guest as the front-end says: by frames, by grants, or by grants not in advance but for each
    request (QEMU "Vhost-user Protocol", "Memory region description").

    ``design``: what the front-end sends with XEN_MMAP: flags and domain with each region, 32 bits
    each ("merged", as specified) or 64 ("review"), or a message in front of them ("message").
    "auto" takes all three, told apart by what arrives.
    ``copy_below``: bytes of a batch's data, 0 to 2**63 - 1, up to which the hypervisor copies the
    pages that are granted for a request; with more they are mapped. 0: always mapped.
    ``None``: 524288, as measured.
    ``domain``: the id of the only domain whose memory is mapped, 0 to 32751. ``None``: any that
    the front-end names. Memory that is shared as a file is no domain's and not concerned.
    ``raw_views``: a device in Python sees granted pages themselves. The data of each request is
    mapped for it alone, whatever ``copy_below`` says, but for pieces of 512 bytes or less; the
    guest has its pages back when the request was answered and its last view is gone. ``False``:
    views show copies in memory of this process. Devices in Rust, as ``FileDisk``, use the pages in
    either case.

    Options cannot be changed once made; those that say the same, of the same guest, are equal.
    ``TypeError`` for what is no number or no truth value, ``ValueError`` for a number or word that
    is none of these.
    """

    design: Design = "auto"
    copy_below: int | None = None
    domain: int | None = None
    raw_views: bool = False

    _guest: XenGuest | None = field(default=None)
    """Whose hypervisor is used instead of the host's: see ``XenGuest.options``."""

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ValueError(f"design is one of {', '.join(DESIGNS)}, not {self.design!r}")
        _check("copy_below", self.copy_below, MOST_BYTES)
        _check("domain", self.domain, FIRST_RESERVED - 1)
        if not isinstance(self.raw_views, bool):
            raise TypeError(f"raw_views is True or False, not {self.raw_views!r}")

    def __repr__(self) -> str:
        names = [each.name for each in fields(self)]
        if self._guest is None:
            names.remove("_guest")
        return f"XenOptions({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def missing_devices() -> list[str]:
    """The hypervisor's devices that are not there for this process."""
    return [path for path in DEVICES if not os.path.exists(path)]


def tell_missing_devices(label: str) -> None:
    """Logs that of the back-end called ``label``. It is no fault: front-ends pass descriptors."""
    missing = missing_devices()
    if missing:
        import logging

        logging.getLogger("vhost_user.backend").info(
            "%s: there is no %s here: only descriptors that a front-end passes can be used",
            label,
            " and no ".join(missing),
        )


def checked(options: object) -> XenOptions:
    """``options``, or a ``TypeError`` that says what to write."""
    if isinstance(options, XenOptions):
        return options
    arguments = f"design={options!r}" if options in DESIGNS else ""
    what = getattr(options, "__name__", repr(options))
    raise TypeError(f"xen is a XenOptions, not {what}: write xen=vu.XenOptions({arguments})")


def _check(name: str, value: object, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number from 0 to {most}, or None, not {value!r}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} is 0 to {most}, not {value}")
