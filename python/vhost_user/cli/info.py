"""``vhost-user info``: what the back-end at a socket offers."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from . import block_config
from .client import add_options, connected
from .exits import Exit
from .features import feature_names, protocol_names
from .sizes import format_size
from .streams import out

if TYPE_CHECKING:
    from vhost_user import Frontend

_WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    add_options(parser)
    parser.add_argument(
        "--type",
        choices=("block", "other"),
        default="block",
        help="the device's type, which the protocol does not tell (block)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from vhost_user import Frontend

    path, timeout = options.socket, options.timeout
    with connected(path, timeout) as fd, Frontend(fd=fd, timeout=timeout) as peer:
        found = {"socket": path, **ask(peer, block=options.type == "block")}
    out(json.dumps(found, indent=2) if options.json else render(found))
    return Exit.OK


def ask(peer: "Frontend", *, block: bool) -> dict[str, Any]:
    """All that can be asked without starting a queue."""
    features = feature_names(peer.offered_features, block=block)
    protocol = protocol_names(peer.offered_protocol_features)
    found: dict[str, Any] = {
        "features": _bits(peer.offered_features, features),
        "protocol_features": _bits(peer.offered_protocol_features, protocol),
        "num_queues": peer.num_queues,
        "max_mem_slots": peer.max_mem_slots,
    }
    if block and "CONFIG" in protocol:
        config = bytes(peer.config(0, block_config.LENGTH))
        found["block"] = block_config.decode(config, features)
    return found


def render(found: dict[str, Any]) -> str:
    """The findings for people."""
    lines = [
        found["socket"],
        *_listing("features", found["features"]),
        *_listing("protocol features", found["protocol_features"]),
    ]
    block = found.get("block")
    # What is no disk may be a network device: the protocol does not tell.
    unit = "" if block else " (of a network device: pairs)"
    for title, name, of in (("queues", "num_queues", unit), ("memory slots", "max_mem_slots", "")):
        if found[name] is not None:
            lines.append(f"{title}: {found[name]}{of}")
    if block:
        lines.append(f"size: {block['size']} bytes ({format_size(block['size'])})")
        lines.append("configuration, read as a block device's:")
        lines += [f"  {name}: {value}" for name, value in block.items() if name != "size"]
    return "\n".join(lines)


def _bits(value: int, names: list[str]) -> dict[str, Any]:
    return {"value": f"{value:#x}", "names": names}


def _listing(title: str, bits: dict[str, Any]) -> list[str]:
    import textwrap

    words = ", ".join(bits["names"]) or "none"
    indent = "  "
    lines = textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [f"{title}: {bits['value']}", *lines]
