"""One run of DPDK's test program between a network device and files of packets.

Its port 0 is the device under test, which it drives as a guest would; its port 1 is a network card
made of files: what is "received" there comes from ``sent-0.pcap`` and goes out through queue 0 of
the device, what queue 0 of the device brings is "transmitted" into ``back-0.pcap``; and so on for
each pair of queues.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rig.deadline import Deadline

from . import pcap
from .packages import MEMORY, Packages

PROMPT = "testpmd> "
DEVICE, FILES = 0, 1
"""The numbers of its ports."""

DRIVEN = "Driver name: net_virtio_user"

BUFFER_BYTES = 2048
"""What one receive buffer holds of a packet: DPDK's default."""

RING = 256
"""The entries of a ring: DPDK's default."""

BURST = 32
"""Packets that it moves at once."""

BUFFERS = 16384

START_SECONDS = 60
"""It takes about a second on an idle machine with two cores."""

PATIENCE = "set burst tx delay 100 retry 20000"  # microseconds, and how often
"""A full queue is tried again for 2 s of work before a packet is lost, so that none is."""

SECONDS = 120
"""For a command: one that stops the traffic waits for the end of such a time, on a processor that
all the threads here share."""


class DriverError(Exception):
    """The test program ended, went silent, or did not do what it was told."""


class Driver:
    """Forwards ``packets``, a list for each pair of queues, to the device at ``socket``.

    ``directory`` takes the files of packets. ``options`` are properties of the device,
    ``name=value``. ``close`` ends the program in any case.
    """

    def __init__(
        self,
        packages: Packages,
        directory: Path,
        socket: Path,
        packets: Sequence[Sequence[bytes]],
        *options: str,
    ) -> None:
        self._directory = directory
        self._pairs = len(packets)
        self.sent = sum(map(len, packets))
        for pair, sequence in enumerate(packets):
            pcap.write(self._file("sent", pair), sequence)
        self._log = ""
        # A terminal: into a pipe it would write its answers after its prompt.
        self._terminal, other = pty.openpty()
        try:
            self._process = subprocess.Popen(
                [*packages.testpmd(), *self._environment(socket, options), "--", *self._ports()],
                stdin=other,
                stdout=other,
                stderr=other,
                start_new_session=True,
            )
        finally:
            os.close(other)

    def wait_ready(self) -> None:
        """Waits until the driver has started the device and the program takes commands."""
        self._read_answer(Deadline(START_SECONDS), "starting")
        if DRIVEN not in self.command(f"show port info {DEVICE}"):
            raise self._failure("started without the device")
        self.command("set fwd io retry")
        self.command(PATIENCE)

    def command(self, words: str, *, seconds: float = SECONDS) -> str:
        """Has ``words`` carried out and returns what was printed."""
        os.write(self._terminal, words.encode() + b"\n")
        return self._read_answer(Deadline(seconds), words)

    def counter(self, port: int, name: str) -> int:
        """A number of the port's statistics, as ``RX-packets``."""
        before = self._log
        shown = self.command(f"show port stats {port}")
        self._log = before  # it is asked often, and would push everything else out of a report
        found = re.search(rf"\b{name}: +(\d+)", shown)
        if found is None:
            raise DriverError(f"no {name} in: {shown}")
        return int(found[1])

    def wait_back(self, count: int, *, seconds: float = 60) -> None:
        """Waits until the device has brought ``count`` packets back, of all queues together."""
        deadline = Deadline(seconds)
        while (back := self.counter(FILES, "TX-packets")) < count:
            if not deadline.left():
                raise DriverError(
                    f"{back} packets of {count} came back in {seconds} s\n"
                    f"{self.command('show port stats all')}"
                )

    def quit(self, *, seconds: float = SECONDS) -> list[list[bytes]]:
        """Ends the program in order; returns what came back, a list for each pair of queues."""
        os.write(self._terminal, b"quit\n")
        self._read_answer(Deadline(seconds), "quit", ends=True)
        if (status := self._process.wait(seconds)) != 0:
            raise self._failure(f"ended with {status}")
        return [pcap.read(self._file("back", pair)) for pair in range(self._pairs)]

    def report(self, *, size: int = 8000) -> str:
        """The end of all that it has printed."""
        return self._log[-size:]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._terminal)

    def _file(self, name: str, pair: int) -> Path:
        return self._directory / f"{name}-{pair}.pcap"

    def _environment(self, socket: Path, options: Sequence[str]) -> list[str]:
        """Options of DPDK: memory, threads (one for each queue and direction), devices."""
        processors = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        device = [f"net_virtio_user0,path={socket},queues={self._pairs}", *options]
        if self._pairs > 1:
            device.append("cq=1")
        files = ["net_pcap0"]
        for pair in range(self._pairs):
            files += [f"rx_pcap={self._file('sent', pair)}", f"tx_pcap={self._file('back', pair)}"]
        return [
            *MEMORY,
            f"--lcores=(0-{2 * self._pairs})@({processors})",
            *("--vdev", ",".join(device), "--vdev", ",".join(files)),
        ]

    def _ports(self) -> list[str]:
        """Options of the test program."""
        return [
            *("--interactive", "--no-flush-rx", f"--total-num-mbufs={BUFFERS}"),
            *(f"--rxq={self._pairs}", f"--txq={self._pairs}", f"--nb-cores={2 * self._pairs}"),
        ]

    def _read_answer(self, deadline: Deadline, step: str, *, ends: bool = False) -> str:
        """What is printed up to the next prompt, or with ``ends`` up to the program's end."""
        answer = ""
        while ends or not answer.endswith(PROMPT):
            if not select.select([self._terminal], [], [], deadline.left())[0]:
                raise self._failure(f"no answer in {deadline.seconds} s to: {step}")
            data = b""
            with suppress(OSError):  # the other end of the terminal is closed
                data = os.read(self._terminal, 1 << 16)
            if not data:
                if ends:
                    break
                raise self._failure(f"ended in: {step}")
            answer += data.decode(errors="replace").replace("\r", "")
            self._log += data.decode(errors="replace").replace("\r", "")
        return answer.removesuffix(PROMPT)

    def _failure(self, words: str) -> DriverError:
        return DriverError(f"testpmd: {words}\n{self.report()}")
