"""The options for front-ends on Xen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .exits import Exit, Failure
from .parser import checked
from .sizes import parse_size

if TYPE_CHECKING:
    from vhost_user import XenOptions

DESIGNS = ("auto", "merged", "review", "message")


def add_options(group: argparse._ArgumentGroup) -> None:
    """Adds ``--xen`` and what goes with it."""
    group.add_argument(
        "--xen",
        nargs="?",
        const="auto",
        type=checked(_design),
        metavar="=DESIGN",
        help="serve front-ends on Xen too, with XEN_MMAP in this design: "
        "auto (all of them), merged, review or message",
    )
    group.add_argument(
        "--xen-domain",
        type=checked(_domain),
        metavar="N",
        help="map the memory of no domain but this one, a number as `xl domid` tells it "
        "(any that the front-end names)",
    )
    group.add_argument(
        "--xen-copy-below",
        type=checked(_copy_below),
        metavar="BYTES",
        help="copy up to so many bytes of a batch that are granted for it, map more (512K)",
    )


def xen_options(options: argparse.Namespace) -> XenOptions | None:
    """What was asked for; ``None`` without ``--xen``. :class:`Failure` if that is missing."""
    domain, copy_below = options.xen_domain, options.xen_copy_below
    if options.xen is None:
        given = "--xen-domain" if domain is not None else "--xen-copy-below"
        if domain is not None or copy_below is not None:
            raise Failure(f"{given} needs --xen", status=Exit.USAGE)
        return None
    from vhost_user import XenOptions

    return XenOptions(design=options.xen, domain=domain, copy_below=copy_below)


def summary(xen: XenOptions) -> str:
    """Options in a few words, and what is not here: ``xen auto, without /dev/xen/gntdev``."""
    from vhost_user.xen import missing_devices

    domain = "" if xen.domain is None else f" domain {xen.domain}"
    missing = " and ".join(missing_devices())
    return f"xen {xen.design}{domain}" + (f", without {missing}" if missing else "")


def _design(text: str) -> str:
    if text not in DESIGNS:
        raise ValueError(
            f"{text!r} is none of {', '.join(DESIGNS)}; if it belongs to something else, "
            "write --xen=auto in front of it"
        )
    return text


def _domain(text: str) -> int:
    from vhost_user import XenOptions

    number = parse_size(text)
    XenOptions(domain=number)
    return number


def _copy_below(text: str) -> int:
    from vhost_user import XenOptions

    size = parse_size(text)
    XenOptions(copy_below=size)
    return size
