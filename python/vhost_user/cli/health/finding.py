"""One thing that was looked at."""

from typing import Literal, NamedTuple

State = Literal["ok", "note", "wrong"]
"""``note``: something is not to be had that not everybody needs. ``wrong``: back-ends fail."""


class Finding(NamedTuple):
    """What was found, and what to do."""

    name: str
    state: State
    found: str
    advice: str = ""
    """Nothing where all is well."""
