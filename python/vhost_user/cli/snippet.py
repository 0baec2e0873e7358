"""``vhost-user snippet``: what a virtual machine has to be told to have a device."""

import argparse
import importlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from vhost_user.limits import MAX_SIZE

from .client import TIMEOUT, connected
from .device_types import BLOCK, NET, type_number
from .exits import Exit, Failure
from .parser import checked
from .sizes import number_in
from .streams import flush_out, note, out
from .type_guess import guess_type
from .vmm import MODULES
from .vmm.device import ShownDevice, Snippet
from .vmm.program import Machine, Version, find, version_of, version_text

if TYPE_CHECKING:
    from vhost_user import Frontend

MEMORY = 512 << 20
"""Bytes of the guest's memory, if nothing is said."""

LEAST_MEMORY = 1 << 20
"""The least that may be asked for."""

QUEUES = 4
"""Most queues that the guest is told to use, if nothing is said."""

RING = 32768
"""VIRTIO 1.3, "Split Virtqueues": the longest ring. A socket does not tell what a device takes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    from vhost_user.devices.base import MAX_QUEUES

    parser.add_argument(
        "target",
        metavar="TARGET",
        help="the socket of a back-end that runs; or what run takes, FILE.py:Class or "
        "package.module:Class, with --socket-path",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="the options of the class, as for run"
    )
    parser.add_argument(
        "--for",
        dest="vmm",
        required=True,
        choices=tuple(MODULES),
        metavar="VMM",
        help=f"what runs the virtual machine: {', '.join(MODULES)}",
    )
    parser.add_argument(
        "--socket-path", metavar="PATH", help="where a class will be served, if TARGET is one"
    )
    parser.add_argument(
        "--type",
        type=checked(type_number),
        metavar="TYPE",
        help="the type of the device at a socket, which the protocol does not tell: rng, i2c, ... "
        "(a disk and a network device are recognised)",
    )
    parser.add_argument(
        "--queues",
        type=checked(number_in(1, MAX_QUEUES)),
        metavar="N",
        help=f"queues that the guest is to use, or pairs of a network device (all there are, but "
        f"no more than {QUEUES} of a disk or a network device)",
    )
    parser.add_argument(
        "--memory",
        type=checked(number_in(LEAST_MEMORY, MAX_SIZE)),
        default=MEMORY,
        metavar="BYTES",
        help="the guest's memory (512M)",
    )
    version = parser.add_mutually_exclusive_group()
    version.add_argument(
        "--program", metavar="PROGRAM", help="the VMM's program, to ask for its version"
    )
    version.add_argument(
        "--vmm-version",
        type=checked(_version),
        metavar="X.Y",
        help="the VMM's version, if it is not the one installed here",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with fixed names")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    device = _device(options)
    vmm = importlib.import_module(f".vmm.{MODULES[options.vmm]}", __package__)
    machine = _machine(options, vmm.PROGRAMS)
    snippet = vmm.snippet(device, machine)
    if options.json:
        out(json.dumps(_as_json(options.vmm, device, machine, snippet), indent=2))
        return Exit.OK
    for line in snippet.lines:
        out(line)
    flush_out()  # In a terminal the notes come below the lines.
    for sentence in [_of_version(options.vmm, machine, vmm.PROGRAMS), *snippet.notes]:
        note(f"note: {sentence}")
    return Exit.OK


def _device(options: argparse.Namespace) -> ShownDevice:
    if _is_target(options.target):
        device_id, most, size = _of_target(options)
        socket = options.socket_path
    else:
        if options.settings or options.socket_path is not None:
            what = "key=value and --socket-path are for classes"
            raise Failure(f"{options.target} is no FILE.py:Class: {what}", status=Exit.USAGE)
        device_id, most = _of_socket(options)
        socket, size = options.target, RING
    limit = QUEUES if device_id in (BLOCK, NET) else most
    queues = min(most, limit) if options.queues is None else options.queues
    if queues > most:
        raise Failure(f"--queues is {queues}, and the device has {most}", status=Exit.USAGE)
    return ShownDevice(device_id, socket, queues, most, size)


def _is_target(text: str) -> bool:
    """Whether this is what `run` takes, and not the path of a socket."""
    try:
        if stat.S_ISSOCK(os.stat(text).st_mode):
            return False
    except OSError:
        pass
    place = text.partition(":")[0]
    return place.endswith(".py") or ("/" not in text and (":" in text or _is_module(text)))


def _is_module(text: str) -> bool:
    import importlib.util

    names = text.split(".")
    if not all(name.isidentifier() for name in names):
        return False
    try:
        return importlib.util.find_spec(text) is not None
    except (ImportError, ValueError):
        return False


def _of_target(options: argparse.Namespace) -> tuple[int, int, int]:
    """Type, queues and the longest ring of a device that is made as `run` makes it."""
    from .run import make_device

    if options.socket_path is None:
        raise Failure("--socket-path PATH is needed with a class", status=Exit.USAGE)
    if options.type is not None:
        raise Failure("--type is for a socket: a class has its type", status=Exit.USAGE)
    device = make_device(options.target, options.settings)
    count = device.num_queues
    most = max(1, count // 2) if device.device_id == NET else count
    return device.device_id, most, device.queue_size


def _of_socket(options: argparse.Namespace) -> tuple[int, int]:
    """Type and queues of the device that is served at a socket."""
    from vhost_user import Frontend

    with connected(options.target, TIMEOUT) as fd, Frontend(fd=fd, timeout=TIMEOUT) as peer:
        device_id = _type_of(peer) if options.type is None else options.type
        queues = peer.num_queues
    if device_id is None:
        what = f"{options.target}: the protocol does not tell the device's type"
        raise Failure(f"{what}; say it: --type rng", status=Exit.USAGE)
    return device_id, queues or 1


def _type_of(peer: "Frontend") -> int | None:
    protocol = peer.protocol_feature_names(peer.offered_protocol_features)
    return guess_type(
        peer.offered_features, has_config="CONFIG" in protocol, names=peer.feature_names
    )


def _machine(options: argparse.Namespace, programs: tuple[str, ...]) -> Machine:
    """What is installed, unless a version was told."""
    if options.vmm_version is not None:
        return Machine(None, options.vmm_version, options.memory)
    program = find(programs, options.program)
    version = version_of(program) if program is not None and programs else None
    return Machine(program, version, options.memory)


def _of_version(vmm: str, machine: Machine, programs: tuple[str, ...]) -> str:
    if machine.version is not None:
        where = f", {machine.program}" if machine.program is not None else ""
        return f"for {vmm} {version_text(machine.version)}{where}"
    if not programs:
        return f"for {vmm}, by its documents"
    return f"no {vmm} is here: for a new one (--vmm-version X.Y or --program PROGRAM tells which)"


def _as_json(vmm: str, device: ShownDevice, machine: Machine, snippet: Snippet) -> dict[str, Any]:
    return {
        "vmm": vmm,
        "version": version_text(machine.version) if machine.version is not None else None,
        "program": machine.program,
        "type": device.type,
        "socket": device.socket,
        "queues": device.queues,
        "lines": snippet.lines,
        "arguments": snippet.words,
        "notes": snippet.notes,
    }


def _version(text: str) -> Version:
    numbers = text.split(".")[:2]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is not a version such as 11.1")
    return int(numbers[0]), int(numbers[1])
