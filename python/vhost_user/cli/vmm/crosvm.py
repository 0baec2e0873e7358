"""crosvm: the page "Vhost-user devices" of its book."""

from ..exits import Failure
from .device import ShownDevice, Snippet, as_arguments
from .program import Machine

PROGRAMS: tuple[str, ...] = ()
"""It has no version that says what it takes."""

TYPES = (1, 2, 3, 4, 5, 8, 9, 16, 18, 19, 23, 25, 26, 27, 32)
"""The device types that its option `--vhost-user` knows, by the names that they have here too."""


def snippet(device: ShownDevice, machine: Machine) -> Snippet:
    """The option; the guest's memory is shared in any case."""
    if device.device_id not in TYPES:
        raise Failure(f"crosvm has no device for a back-end of type {device.type}")
    if any(letter in device.socket for letter in ",'\"[]"):
        raise Failure(f"{device.socket}: crosvm takes no such path; choose one without , ' \" [ ]")
    option = f"type={device.type},socket={device.socket}"
    notes = [
        "the option belongs behind crosvm run; older versions have --vhost-user-blk and others"
    ]
    if device.is_network:
        notes.append(
            "crosvm counts queues where the device counts pairs: give the device twice as many"
        )
    return as_arguments([["--vhost-user", option]], notes)
