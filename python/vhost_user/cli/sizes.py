"""Sizes as people write them, with binary units."""

import math
import re
from collections.abc import Callable

_UNITS = "KMGTPE"
_SIZE = re.compile(r"(\d+)\s*(?:([KMGTPE])(?:iB)?)?", re.IGNORECASE)
_DECIMAL = re.compile(r"\d+\s*[KMGTPE]B", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in ``text``: ``4096``, ``0x1000``, ``64M``, ``1GiB``. Units are powers of 1024.

    ``ValueError`` for anything else, ``64MB`` included: that could mean two numbers.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is not None:
        exponent = _UNITS.index(found[2].upper()) + 1 if found[2] else 0
        return int(found[1]) << (10 * exponent)
    if _DECIMAL.fullmatch(text.strip()):
        raise ValueError(f"{text!r}: write {text.strip()[:-1]} for units of 1024")
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} is not a number or a size such as 64M or 1GiB") from None


def number_in(least: int, most: int) -> Callable[[str], int]:
    """What reads a number or a size from ``least`` to ``most``, and says so of another one."""
    return _one_of(lambda number: least <= number <= most, f"a number from {least} to {most}")


def power_of_two(least: int, most: int) -> Callable[[str], int]:
    """The same of a power of two."""

    def fits(number: int) -> bool:
        return least <= number <= most and not number & (number - 1)

    return _one_of(fits, f"a power of two from {least} to {most}")


def multiple_of(unit: int, most: int) -> Callable[[str], int]:
    """The same of a multiple of ``unit`` bytes, one at least."""

    def fits(number: int) -> bool:
        return unit <= number <= most and not number % unit

    return _one_of(fits, f"a multiple of {unit} bytes from {unit} to {most}")


def _one_of(fits: Callable[[int], bool], what: str) -> Callable[[str], int]:
    def converter(text: str) -> int:
        if _DECIMAL.fullmatch(text.strip()):
            return parse_size(text)  # It has two meanings, which the error says.
        try:
            number = parse_size(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {what}") from None
        if not fits(number):
            raise ValueError(f"{text!r} is not {what}")
        return number

    return converter


def seconds_in(least: float, most: float) -> Callable[[str], float]:
    """The same of a number of seconds."""

    def converter(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not least <= seconds <= most:
            raise ValueError(f"{text!r} is not a number of seconds from {least:g} to {most:g}")
        return seconds

    return converter


def format_size(size: int) -> str:
    """``size`` bytes in the largest unit in which it is whole: ``64 MiB``, ``513 bytes``."""
    exponent = 0
    while size and size % 1024 == 0 and exponent < len(_UNITS):
        size //= 1024
        exponent += 1
    return f"{size} {_UNITS[exponent - 1]}iB" if exponent else f"{size} bytes"


def size_option(size: int) -> str:
    """``size`` bytes as options of programs have it, in the largest unit in which it is whole:
    ``512M``."""
    number, _, unit = format_size(size).partition(" ")
    return number if unit == "bytes" else number + unit[0]


def about(size: float) -> str:
    """``size`` bytes to three digits: ``1.25 GiB``."""
    exponent = 0
    while size >= 1000 and exponent < len(_UNITS):
        size /= 1024
        exponent += 1
    return f"{size:.3g} {_UNITS[exponent - 1]}iB" if exponent else f"{size:.3g} bytes"
