"""Machines that a guest goes between, each with a back-end of its own, all with one image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hold.held import Held
from rig import failure

from .command import BlkCommand, ServeCommand
from .rig.machine import Device, Machine
from .rig.packages import NEWEST, fetch

DISK_BYTES = 16 << 20

MACHINE = "pc-q35-10.0"
"""QEMU's name of the newest machine that 10.0 and 11.1 know."""

MODEL = "vhost-user-blk-pci,queue-size=1024"
"""QEMU 10.0 has rings of 1024 entries whatever is said, and later ones have what is said."""

SLOW = Path(__file__).with_name("slow.py")


class Fleet:
    """Ended with the test."""

    def __init__(self, directory: Path, sockets: Path, node: pytest.Item) -> None:
        self.image = directory / "disk.img"
        with self.image.open("wb") as file:
            file.truncate(DISK_BYTES)
        self._directory = directory
        self._sockets = sockets
        self._node = node
        self._stack = ExitStack()
        self._number = 0

    def blk(self, *options: str) -> ServeCommand:
        """``vhost-user blk``, started."""
        socket = self.new_socket("blk")
        log = self._directory / f"{socket.stem}.log"
        return self._start(BlkCommand(self.image, socket, *options, log=log))

    def slow(self, *settings: str) -> ServeCommand:
        """The disk in Python that takes its time, started."""
        socket = self.new_socket("slow")
        log = self._directory / f"{socket.stem}.log"
        words = ["run", str(SLOW), f"image={self.image}", *settings]
        return self._start(ServeCommand(*words, socket=socket, log=log))

    def _start(self, command: ServeCommand) -> ServeCommand:
        self._stack.callback(command.kill)
        failure.show(self._node, "back-end", command)
        command.start()
        return command

    def machine(
        self,
        back_end: ServeCommand | Held,
        suite: str = NEWEST,
        *,
        properties: str = "",
        options: Sequence[str] = (),
        kernel_arguments: str = "",
        cpus: int = 1,
        incoming: bool = False,
    ) -> Machine:
        """A machine on this back-end; with ``incoming`` it waits for a guest from another one.
        ``properties`` are those of the disk, each with a comma before it.
        """
        self._number += 1
        directory = self._directory / str(self._number)
        directory.mkdir()
        device = Device(model=MODEL + properties, socket=back_end.socket)
        machine = Machine(
            fetch(suite),
            directory,
            [device],
            machine=MACHINE,
            system=fetch(NEWEST),
            options=options,
            kernel_arguments=kernel_arguments,
            cpus=cpus,
            incoming=incoming,
        )
        self._stack.enter_context(machine)
        failure.show(self._node, f"machine {self._number}", machine)
        if not incoming:
            machine.wait_ready()
        return machine

    def new_socket(self, name: str) -> Path:
        """A path that no socket has had."""
        self._number += 1
        return self._sockets.with_name(f"{name}{self._number}.sock")

    def close(self) -> None:
        self._stack.close()
