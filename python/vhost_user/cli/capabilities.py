"""``--print-capabilities``: what a management tool asks before it starts a back-end.

QEMU "Vhost-user Protocol", "Backend program conventions": JSON on standard output, status 0, and
everything else on the command line is ignored.
"""

import json
from collections.abc import Sequence

from .device_types import BLOCK, NAMES
from .exits import Exit, Failure
from .streams import out

BLOCK_OPTIONS = ["blk-file", "read-only"]
"""The conventions' names of the options of ``vhost-user blk``."""


def show(arguments: Sequence[str]) -> int:
    """Prints the capabilities of the program that ``arguments`` would start."""
    capabilities: dict[str, object] = {"type": NAMES[BLOCK], "features": BLOCK_OPTIONS}
    if arguments[0] == "run":
        capabilities = {"type": _type_of_target(arguments[1:])}
    out(json.dumps(capabilities))
    return Exit.OK


def _type_of_target(arguments: Sequence[str]) -> str:
    from .device_types import type_name
    from .target import load

    target = _target_among(arguments)
    if target is None:
        raise Failure("run has no target: the device's type is not known", status=Exit.USAGE)
    device_id = getattr(load(target).factory, "device_id", None)
    if not isinstance(device_id, int):
        raise Failure(f"{target} has no device_id: the device's type is not known")
    return type_name(device_id)


def _target_among(arguments: Sequence[str]) -> str | None:
    """The target, without understanding the other options: it comes first, or looks like one."""
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    if words and words[0] == arguments[0]:
        return words[0]
    return next((word for word in words if ":" in word or word.endswith(".py")), None)
