"""Methods of a device that look as if they were to be called, and are not."""

from collections.abc import Iterator

from .devices.base import Device
from .devices.block import BlockDevice

COMMON = ("on_start", "on_stop", "on_reset", "on_disconnect", "save", "load")

BLOCK = (*COMMON, "read", "write", "flush", "discard", "write_zeroes", "on_batch")

QUEUE = (*COMMON, "on_queue", "on_buffers", "on_queue_stop", "read_config", "write_config")

OTHER_NAMES = {
    "trim": "discard",
    "unmap": "discard",
    "zero": "write_zeroes",
    "sync": "flush",
    "fsync": "flush",
    "pread": "read",
    "pwrite": "write",
    "on_request": "on_queue",
    "on_save": "save",
    "on_load": "load",
    "restore": "load",
    "on_connect": "on_start",
    "on_close": "on_disconnect",
}
"""What other libraries call these methods."""

LIKENESS = 0.8
"""From which on a name is taken for another that was misspelt: ``write_zeros``, ``on_started``."""


def misspelt(kind: type[Device]) -> Iterator[tuple[str, str]]:
    """Methods of a class, each with the callback that it may be meant to be. The class has no such
    callback itself.
    """
    base = BlockDevice if issubclass(kind, BlockDevice) else Device
    callbacks = BLOCK if base is BlockDevice else QUEUE
    absent = [name for name in callbacks if getattr(kind, name) is getattr(base, name)]
    if "on_batch" in callbacks and "on_batch" not in absent:
        # It gets the reads and the writes in their place.
        absent = [name for name in absent if name not in ("read", "write")]
    for name in _own_methods(kind, base):
        meant = OTHER_NAMES.get(name) or _like(name, absent)
        if meant in absent:
            yield name, meant


def _own_methods(kind: type[Device], base: type[Device]) -> Iterator[str]:
    """Names of public methods that the package's own classes do not have."""
    for name in dir(kind):
        is_own = not name.startswith("_") and not hasattr(base, name)
        if is_own and hasattr(getattr(kind, name, None), "__code__"):
            yield name


def _like(name: str, names: list[str]) -> str | None:
    from difflib import get_close_matches  # Not at the top: few devices have other methods.

    return next(iter(get_close_matches(name, names, 1, LIKENESS)), None)
