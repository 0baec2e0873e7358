"""What functions and classes say of an argument that is none of what they take."""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, TypeVar

from .limits import DAY, MAX_FD

if TYPE_CHECKING:
    from collections.abc import Iterable

Word = TypeVar("Word", bound=str)


def number(name: str, value: int, what: str) -> int:
    """``value`` as a whole number; ``TypeError``, which says ``what`` it is, if it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {what}, not {value!r}") from None


def number_in(name: str, value: int, what: str, least: int, most: int) -> int:
    """The same of a number from ``least`` to ``most``; ``ValueError`` for another one."""
    found = number(name, value, what)
    if not least <= found <= most:
        raise ValueError(f"{name} is {least} to {most}, not {found}")
    return found


def descriptor(name: str, value: int | None) -> int | None:
    """A descriptor's number, or None for none."""
    if value is None:
        return None
    return number_in(name, value, "the number of a descriptor, as 3", 0, MAX_FD)


def seconds(name: str, value: float) -> float:
    """A number of seconds up to a day; negative ones, as of a time that has passed, are none."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} is a number of seconds, as 5.0, not {value!r}")
    found = float(value)
    if not found <= DAY:
        raise ValueError(f"{name} is a number of seconds up to {DAY:.0f}, not {value}")
    return max(found, 0.0)


def flag(name: str, value: bool) -> bool:
    """True or False. Text is neither, though "no" counts as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}")
    return value


def path(name: str, value: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str | bytes:
    """A path as the system takes it: not empty, and with no byte 0."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} is a path, as 'disk.sock', not {value!r}")
    found = os.fspath(value)
    if not found or (0 in found if isinstance(found, bytes) else "\0" in found):
        raise ValueError(f"{name} is a path, as 'disk.sock', not {value!r}")
    return found


def choice(name: str, value: Word, known: Iterable[Word]) -> Word:
    """One of the words that are known."""
    words = list(known)
    if not isinstance(value, str) or value not in words:
        listed = ", ".join(map(repr, words))
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} is one of {listed}, not {value!r}")
    return value
