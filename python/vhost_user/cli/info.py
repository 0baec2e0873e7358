"""``vhost-user info``: what the back-end at a socket offers."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from . import block_config
from .client import add_options, connected
from .device_types import BLOCK, NET, type_name, type_number
from .exits import Exit
from .parser import checked
from .sizes import format_size
from .streams import out
from .type_guess import guess_type

if TYPE_CHECKING:
    from vhost_user import Frontend

_WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    add_options(parser)
    parser.add_argument(
        "--type",
        type=checked(type_number),
        metavar="TYPE",
        help="the device's type, which the protocol does not tell: net, blk, rng, ... or other "
        "(a disk and a network device are recognised)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from vhost_user import Frontend

    path, timeout = options.socket, options.timeout
    with connected(path, timeout) as fd, Frontend(fd=fd, timeout=timeout) as peer:
        found = {"socket": path, **ask(peer, options.type)}
    out(json.dumps(found, indent=2) if options.json else render(found))
    return Exit.OK


def ask(peer: "Frontend", device_id: int | None) -> dict[str, Any]:
    """All that can be asked without starting a queue. ``device_id``: the type, if it is known."""
    protocol = peer.protocol_feature_names(peer.offered_protocol_features)
    has_config = "CONFIG" in protocol
    is_told = device_id is not None
    if device_id is None:
        device_id = guess_type(
            peer.offered_features, has_config=has_config, names=peer.feature_names
        )
    features = peer.feature_names(peer.offered_features, device_id)
    found: dict[str, Any] = {
        "type": type_name(device_id) if device_id else None,
        "type_is_guessed": device_id is not None and not is_told,
        "features": _bits(peer.offered_features, features),
        "protocol_features": _bits(peer.offered_protocol_features, protocol),
        "ring_formats": ["split", *(["packed"] if "RING_PACKED" in features else [])],
        "in_order": "IN_ORDER" in features,
        "num_queues": peer.num_queues,
        "max_mem_slots": peer.max_mem_slots,
    }
    if device_id == BLOCK and has_config:
        config = bytes(peer.config(0, block_config.LENGTH))
        found["block"] = block_config.decode(config, features)
    return found


def render(found: dict[str, Any]) -> str:
    """The findings for people."""
    lines = [
        found["socket"],
        _type(found),
        *_listing("features", found["features"]),
        *_listing("protocol features", found["protocol_features"]),
    ]
    block = found.get("block")
    pairs = {type_name(NET): " pairs", None: " (of a network device: pairs)"}
    unit = pairs.get(found["type"], "")
    for title, name, of in (("queues", "num_queues", unit), ("memory slots", "max_mem_slots", "")):
        if found[name] is not None:
            lines.append(f"{title}: {found[name]}{of}")
    lines.append(f"rings: {_rings(found)}")
    if block:
        lines.append(f"size: {block['size']} bytes ({format_size(block['size'])})")
        lines.append("configuration, read as a block device's:")
        lines += [f"  {name}: {value}" for name, value in block.items() if name != "size"]
    return "\n".join(lines)


def _type(found: dict[str, Any]) -> str:
    if found["type"] is None:
        return "type: not known (--type TYPE tells it)"
    return f"type: {found['type']}" + (" (guessed)" if found["type_is_guessed"] else "")


def _rings(found: dict[str, Any]) -> str:
    in_order = ", in order if asked" if found["in_order"] else ""
    return " or ".join(found["ring_formats"]) + in_order


def _bits(value: int, names: list[str]) -> dict[str, Any]:
    return {"value": f"{value:#x}", "names": names}


def _listing(title: str, bits: dict[str, Any]) -> list[str]:
    import textwrap

    words = ", ".join(bits["names"]) or "none"
    indent = "  "
    lines = textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [f"{title}: {bits['value']}", *lines]
