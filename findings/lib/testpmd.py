"""Drives the testpmd that ``install_dpdk`` has unpacked, by its prompt."""

from __future__ import annotations

import atexit
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "testpmd> "
ANSWER_SECONDS = 60
WAIT_SECONDS = 30


class Testpmd:
    """One testpmd on the virtual device ``device``, whose ``driver`` is a library of DPDK."""

    def __init__(self, work: Path, name: str, driver: str, device: str, *options: str) -> None:
        libraries = work / "root/usr/lib/x86_64-linux-gnu"
        system = work / "root/lib/x86_64-linux-gnu"
        (drivers,) = libraries.glob("dpdk/pmds-*")
        loaded = (f"{driver}.so.23", "librte_mempool_ring.so.23")
        self.name = name
        self.terminal, other = pty.openpty()
        self.process = subprocess.Popen(
            [
                system / "ld-linux-x86-64.so.2",
                *("--library-path", f"{system}:{libraries}:{drivers}"),
                *("--preload", " ".join(loaded), work / "root/usr/bin/dpdk-testpmd"),
                *("--no-huge", "--no-shconf", "-m", "128", "--no-pci", "--no-telemetry"),
                *("--lcores", "(0-1)@0", "--vdev", device),
                *("--", "--interactive", "--total-num-mbufs=2048", *options),
            ],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        atexit.register(self.process.kill)
        os.close(other)
        self._answer("starting")

    def do(self, words: str) -> str:
        """What it answers to a command."""
        os.write(self.terminal, words.encode() + b"\n")
        return self._answer(words)

    def wait(self, words: str, wanted: str) -> str:
        """Repeats a command until the answer matches ``wanted``; the last answer."""
        end = time.monotonic() + WAIT_SECONDS
        while not re.search(wanted, shown := self.do(words)):
            if time.monotonic() > end:
                return shown
        return shown

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def _answer(self, step: str) -> str:
        text, end = "", time.monotonic() + ANSWER_SECONDS
        while not text.endswith(PROMPT):
            if not select.select([self.terminal], [], [], max(end - time.monotonic(), 0))[0]:
                sys.exit(f"{self.name}: no answer to {step}: {text}")
            try:
                text += os.read(self.terminal, 1 << 16).decode().replace("\r", "")
            except OSError:
                sys.exit(f"{self.name} ended in {step}: {text}")
        return text


def number(text: str, name: str) -> int:
    """The number that an answer shows behind ``name``."""
    found = re.search(rf"\b{name}: *(\d+)", text)
    if not found:
        sys.exit(f"no {name} in {text}")
    return int(found[1])
