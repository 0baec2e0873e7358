"""libvirt: elements of a domain's XML."""

import json
import os
from xml.sax.saxutils import quoteattr

from ..exits import Failure
from . import qemu
from .device import ShownDevice, Snippet
from .program import Machine, find, version_of, version_text

PROGRAMS = ("virsh", "libvirtd", "virtqemud")

DISKS_SINCE = (7, 1)
"""The first version with disks of the type `vhostuser`."""

MEMORY = [
    "<!-- in <domain> -->",
    "<memoryBacking>",
    "  <source type='memfd'/>",
    "  <access mode='shared'/>",
    "</memoryBacking>",
]

RIGHTS_NOTE = (
    "QEMU runs as a user of its own: start the back-end with --mode 0660 and --group for that "
    "user's group (libvirt-qemu on Debian, qemu on Fedora), or use qemu:///session"
)

SCHEMA = "http://libvirt.org/schemas/domain/qemu/1.0"
"""The name space of options that are QEMU's."""


def snippet(device: ShownDevice, machine: Machine) -> Snippet:
    """The elements, each below a comment that says where it goes."""
    device = device._replace(socket=os.path.abspath(device.socket))
    if device.is_disk:
        if machine.is_older_than(DISKS_SINCE):
            since, here = version_text(DISKS_SINCE), version_text(machine.version or (0, 0))
            raise Failure(f"libvirt {here} has no vhostuser disks; {since} has them")
        lines = _in_devices(_disk(device))
    elif device.is_network:
        lines = _in_devices(_interface(device))
    elif device.type == "fs":
        lines = _in_devices(_filesystem(device))
    else:
        lines = _command_line(device, machine)
    return Snippet([*MEMORY, *lines], [RIGHTS_NOTE], [])


def _in_devices(element: list[str]) -> list[str]:
    return ["<!-- in <devices> -->", *element]


def _source(device: ShownDevice, more: str = "") -> list[str]:
    return [
        f"  <source type='unix' path={quoteattr(device.socket)}{more}>",
        "    <reconnect enabled='yes' timeout='1'/>",
        "  </source>",
    ]


def _disk(device: ShownDevice) -> list[str]:
    return [
        "<disk type='vhostuser' device='disk'>",
        f"  <driver name='qemu' type='raw' queues='{device.queues}'/>",
        *_source(device),
        "  <target dev='vda' bus='virtio'/>",
        "</disk>",
    ]


def _interface(device: ShownDevice) -> list[str]:
    queues = [f"  <driver queues='{device.queues}'/>"] if device.queues > 1 else []
    return [
        "<interface type='vhostuser'>",
        *_source(device, " mode='client'"),
        "  <model type='virtio'/>",
        *queues,
        "</interface>",
    ]


def _filesystem(device: ShownDevice) -> list[str]:
    return [
        "<filesystem type='mount'>",
        "  <driver type='virtiofs'/>",
        f"  <source socket={quoteattr(device.socket)}/>",
        "  <target dir='vu0'/>",
        "</filesystem>",
    ]


def _command_line(device: ShownDevice, machine: Machine) -> list[str]:
    """Options of QEMU, for a type that libvirt has no element for."""
    program = find(qemu.PROGRAMS, None)
    version = version_of(program) if program is not None else None
    words = qemu.words(device, Machine(program, version, machine.memory))
    return [
        f"<!-- in <domain>, which says xmlns:qemu='{SCHEMA}' -->",
        "<qemu:commandline>",
        *(f"  <qemu:arg value={quoteattr(word)}/>" for group in words for word in _in_json(group)),
        "</qemu:commandline>",
    ]


def _in_json(group: list[str]) -> list[str]:
    """A device as an object. QEMU makes devices that are written so in order, and before them all
    others: one with no address would get the slot that libvirt has chosen for one of its own."""
    option, value = group
    if option != "-device":
        return group
    driver, *properties = value.split(",")
    found: dict[str, str | int] = {"driver": driver}
    for name, _, text in (each.partition("=") for each in properties):
        found[name] = int(text) if text.isdecimal() else text
    return [option, json.dumps(found)]
