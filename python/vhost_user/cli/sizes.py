"""Sizes as people write them, with binary units."""

import re

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
