"""Cloud Hypervisor: its documents `docs/memory.md`, `docs/vhost-user-blk-testing.md`,
`docs/vhost-user-net-testing.md`, `docs/fs.md` and `docs/generic-vhost-user.md`."""

from ..exits import Failure
from ..sizes import size_option
from .device import ShownDevice, Snippet, as_arguments
from .program import Machine, version_text

PROGRAMS = ("cloud-hypervisor",)

GENERIC_SINCE = (52, 0)
"""The first version with `--generic-vhost-user`."""

SIZE = 256
"""Entries of a ring; it has to be told those of generic devices."""


def snippet(device: ShownDevice, machine: Machine) -> Snippet:
    """The options."""
    notes = ["size= is the guest's memory, which has to be shared (shared=on)"]
    if device.is_network:
        notes.append(
            "Cloud Hypervisor counts queues where the device counts pairs: a device with "
            f"{2 * device.queues} queues in use has to have {4 * device.queues}"
        )
    memory = ["--memory", f"size={size_option(machine.memory)},shared=on"]
    return as_arguments([memory, _option(device, machine)], notes)


def _option(device: ShownDevice, machine: Machine) -> list[str]:
    socket, size = quoted(device.socket), min(device.queue_size, SIZE)
    if device.is_disk:
        many = f"num_queues={device.queues},queue_size={size}"
        return ["--disk", f"vhost_user=on,socket={socket},{many}"]
    if device.is_network:
        many = f"num_queues={2 * device.queues},queue_size={size}"
        return ["--net", f"vhost_user=on,socket={socket},{many}"]
    if device.type == "fs":
        many = f"num_queues={max(1, device.queues - 1)},queue_size={size}"
        return ["--fs", f"tag=vu0,socket={socket},{many}"]
    if machine.is_older_than(GENERIC_SINCE):
        here, since = version_text(machine.version or (0, 0)), version_text(GENERIC_SINCE)
        raise Failure(
            f"Cloud Hypervisor {here} has no device for a back-end of type {device.type}; "
            f"{since} has a generic one"
        )
    sizes = ",".join([str(size)] * device.queues)
    about = f"virtio_id={device.device_id},queue_sizes=[{sizes}]"
    return ["--generic-vhost-user", f"socket={socket},{about}"]


def quoted(path: str) -> str:
    """A path as the value of an option."""
    if not any(letter in path for letter in ',"[]'):
        return path
    doubled = path.replace('"', '""')
    return f'"{doubled}"'
