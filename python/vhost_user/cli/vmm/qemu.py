"""QEMU: a character device for the socket, and the device that goes with it."""

import platform
import re

from ..exits import Failure
from ..sizes import size_option
from .device import ShownDevice, Snippet, as_arguments
from .program import Machine, said, version_text

PROGRAMS = (f"qemu-system-{platform.machine()}", "qemu-kvm", "/usr/libexec/qemu-kvm")

MILLISECONDS = (9, 2)
"""From here on `reconnect` of a socket is called `reconnect-ms`."""

OWN_DEVICES = {
    # type, its part of the device's name, the first version that was seen with it
    2: ("blk", (7, 2)),
    4: ("rng", (7, 2)),
    8: ("scsi", (7, 2)),
    16: ("gpu", (7, 2)),
    17: ("rtc", (11, 1)),
    18: ("input", (7, 2)),
    19: ("vsock", (7, 2)),
    25: ("snd", (10, 0)),
    26: ("fs", (7, 2)),
    34: ("i2c", (7, 2)),
    41: ("gpio", (7, 2)),
    45: ("spi", (11, 1)),
}

CRYPTO = 20
GENERIC, GENERIC_SINCE = "vhost-user-test-device-pci", (11, 1)
GENERIC_SIZE = 256
"""Entries of the generic device's rings, which has to be told; QEMU has none of more than 1024."""

MEMORY_NOTE = (
    "-m and size= are the guest's memory, which has to be shared: change both, or leave the first "
    "line out where the guest has shared memory already"
)


def snippet(device: ShownDevice, machine: Machine) -> Snippet:
    """The options."""
    size = size_option(machine.memory)
    shared = f"memory-backend-memfd,id=mem,size={size},share=on"
    memory = ["-m", size, "-object", shared, "-machine", "memory-backend=mem"]
    notes = [MEMORY_NOTE]
    if device.most_queues > device.queues:
        what = "pairs of queues" if device.is_network else "queues"
        notes.append(f"one queue for each vCPU is best; the device has {device.most_queues} {what}")
    return as_arguments([memory, *words(device, machine)], notes)


def words(device: ShownDevice, machine: Machine) -> list[list[str]]:
    """The options of the device alone, by lines."""
    again = "reconnect=1" if machine.is_older_than(MILLISECONDS) else "reconnect-ms=1000"
    chardev = f"socket,id=vu0,path={escaped(device.socket)}"
    if device.is_disk or device.is_network:
        chardev += f",{again}"
    return [["-chardev", chardev], *_device(device, machine)]


def escaped(path: str) -> str:
    """A path as the value of an option."""
    return path.replace(",", ",,")


def _device(device: ShownDevice, machine: Machine) -> list[list[str]]:
    if device.is_network:
        many = f",mq=on,vectors={2 * device.queues + 2}" if device.queues > 1 else ""
        network = f"vhost-user,id=vu0net,chardev=vu0,queues={device.queues}"
        return [["-netdev", network], ["-device", f"virtio-net-pci,netdev=vu0net{many}"]]
    if device.device_id == CRYPTO:
        engine = f"cryptodev-vhost-user,id=vu0crypto,chardev=vu0,queues={device.queues}"
        return [["-object", engine], ["-device", "virtio-crypto-pci,cryptodev=vu0crypto"]]
    name = _name(device, machine)
    model = f"{name},chardev=vu0"
    if device.is_disk:
        model += f",num-queues={device.queues}"
    elif device.type == "fs":
        model += ",tag=vu0"
    elif name == GENERIC:
        size = min(device.queue_size, GENERIC_SIZE)
        model += f",virtio-id={device.device_id},num_vqs={device.queues},vq_size={size}"
    return [["-device", model]]


def _name(device: ShownDevice, machine: Machine) -> str:
    """The device that this QEMU has for the type."""
    part, _ = OWN_DEVICES.get(device.device_id, (None, None))
    own = f"vhost-user-{part}-pci"
    known = _devices(machine)
    if part is not None and own in known:
        return own
    if GENERIC in known:
        return GENERIC
    which = "this QEMU" if machine.version is None else f"QEMU {version_text(machine.version)}"
    since = version_text(GENERIC_SINCE)
    raise Failure(
        f"{which} has no device for a back-end of type {device.type}; "
        f"QEMU {since} has a generic one, {GENERIC}"
    )


def _devices(machine: Machine) -> set[str]:
    """The names that `-device` takes: as the program says, or as its version makes likely."""
    if machine.program is not None:
        return set(re.findall(r'^name "([^"]+)"', said(machine.program, "-device", "help"), re.M))
    own = {
        f"vhost-user-{name}-pci"
        for name, since in OWN_DEVICES.values()
        if not machine.is_older_than(since)
    }
    return own if machine.is_older_than(GENERIC_SINCE) else {*own, GENERIC}
