"""Serving front-ends on Xen."""

from typing import Final, Literal, TypeAlias, final

Design: TypeAlias = Literal["auto", "merged", "review", "message"]

DESIGNS: Final[tuple[Design, ...]] = ("auto", "merged", "review", "message")

FIRST_RESERVED = 0x7FF0
"""Domain ids from here on are the hypervisor's own."""


@final
class XenOptions:
    """How a ``Backend`` serves front-ends on Xen. Ordinary front-ends are served as ever.

    ``Backend(device, socket=path, xen=XenOptions())`` offers XEN_MMAP, and maps the memory of the
    guest as the front-end says: by frames, by grants, or by grants on demand.
    """

    __slots__ = ("copy_below", "design", "domain")

    def __init__(
        self,
        *,
        design: Design = "auto",
        copy_below: int | None = None,
        domain: int | None = None,
    ) -> None:
        """``design``: what the front-end sends with XEN_MMAP: flags and domain with each region,
        32 bits each ("merged", as specified) or 64 ("review"), or a message in front of them
        ("message"). "auto" takes all three, told apart by what arrives.
        ``copy_below``: bytes of a batch's data up to which the hypervisor copies granted pages;
        more is mapped. ``None``: as measured.
        ``domain``: the only domain whose memory is mapped. ``None``: any that the front-end names.
        """
        if design not in DESIGNS:
            raise ValueError(f"design is one of {', '.join(DESIGNS)}, not {design!r}")
        if copy_below is not None and copy_below < 0:
            raise ValueError(f"copy_below is not negative, as {copy_below} is")
        if domain is not None and not 0 <= domain < FIRST_RESERVED:
            raise ValueError(f"domain is 0 to {FIRST_RESERVED - 1}, not {domain}")
        self.design = design
        self.copy_below = copy_below
        self.domain = domain

    def __repr__(self) -> str:
        options = ((name, getattr(self, name)) for name in ("design", "copy_below", "domain"))
        given = ", ".join(f"{name}={value!r}" for name, value in options if value is not None)
        return f"XenOptions({given})"
