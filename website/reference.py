"""The pages of the reference, each made from the docstrings of what it names."""

from __future__ import annotations

from typing import NamedTuple


class ReferencePage(NamedTuple):
    """One page: its title, and what is on it, as names of the package."""

    title: str
    names: tuple[str, ...]

    def markdown(self) -> str:
        """The page, for mkdocstrings."""
        blocks = (f"::: vhost_user.{name}" for name in self.names)
        return "\n\n".join([f"# {self.title}", *blocks]) + "\n"


PAGES = {
    "devices": ReferencePage(
        "Devices",
        ("Device", "BlockDevice", "FileDisk", "NullDisk", "Rng", "BlkOp", "StateReader"),
    ),
    "requests": ReferencePage("Requests", ("Queue", "Request", "BlockBatch", "BlockRequest")),
    "serving": ReferencePage(
        "Serving", ("serve", "Backend", "QueueStats", "Metrics", "set_total_copy_budget")
    ),
    "front-ends": ReferencePage(
        "Front-ends and tests", ("Frontend", "VirtioBlkDriver", "LoadReport", "testing")
    ),
    "errors": ReferencePage(
        "Errors",
        (
            *("VhostUserError", "ProtocolError", "NegotiationError", "GuestError"),
            *("MappingError", "RequestError", "StaleRequestError"),
        ),
    ),
    "xen": ReferencePage("Guests of Xen", ("XenOptions", "XenRegion", "XenFlags")),
}
"""By the name of the page's file."""
