"""What a virtual machine has to know of a device, and what it is told in return."""

from typing import NamedTuple

from ..device_types import BLOCK, NET, type_name


class ShownDevice(NamedTuple):
    """A device as front-ends find it."""

    device_id: int
    socket: str
    queues: int
    """How many the guest is to use; of a network device, pairs."""
    most_queues: int
    """How many the device has, counted likewise."""
    queue_size: int
    """Entries of the longest ring that the device takes."""

    @property
    def type(self) -> str:
        """The type's name."""
        return type_name(self.device_id)

    @property
    def is_disk(self) -> bool:
        """Whether it is a block device."""
        return self.device_id == BLOCK

    @property
    def is_network(self) -> bool:
        """Whether it is a network device."""
        return self.device_id == NET


class Snippet(NamedTuple):
    """What has to be written down."""

    lines: list[str]
    """In the language of the program's user: a shell, or XML."""
    notes: list[str]
    """What the user may have to change, or do besides; sentences."""
    words: list[str]
    """The same as arguments of the program; none where it takes no such arguments."""


def as_arguments(groups: list[list[str]], notes: list[str]) -> Snippet:
    """A snippet of arguments, to be pasted behind a command: a line of a shell for each group."""
    import shlex

    lines = [shlex.join(group) for group in groups]
    joined = [f"{line} \\" for line in lines[:-1]] + lines[-1:]
    return Snippet(joined, notes, [word for group in groups for word in group])
