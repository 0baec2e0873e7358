"""A conversation as text: what goes to the back-end, what must come back, byte by byte.

Each line is a frame in hexadecimal, `>` for the front-end's and `<` for the back-end's, with
spaces at will. `..` stands for any byte. `@name` attaches a descriptor. `#` begins a comment.
Byte order is little endian, that of all hosts on which the package runs.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from peer import wire


class Line(NamedTuple):
    """One frame: its direction, a pattern of two characters a byte, its descriptors."""

    sent: bool
    pattern: str
    descriptors: tuple[str, ...]


def parse(text: str) -> list[Line]:
    """The lines of a conversation."""
    lines = []
    for line in text.splitlines():
        content = line.partition("#")[0].strip()
        if content:
            names = tuple(re.findall(r"@(\w+)", content))
            digits = re.sub(r"@\w+|\s", "", content[1:])
            lines.append(Line(content[0] == ">", digits, names))
    return lines


def hold(channel: wire.Channel, text: str, descriptors: Mapping[str, int] | None = None) -> None:
    """Plays a conversation; the back-end must say exactly its lines, and then nothing."""
    known = descriptors or {}
    for line in parse(text):
        if line.sent:
            fds = [known[name] for name in line.descriptors] or None
            channel.send(bytes.fromhex(line.pattern), fds)
        else:
            message = channel.receive()
            got = wire.frame(message.request, message.payload, message.flags).hex()
            matches = re.fullmatch(line.pattern, got)
            assert matches, f"expected {line.pattern}, got {got}"
            assert len(channel.descriptors) == len(line.descriptors)
    assert channel.silent()
