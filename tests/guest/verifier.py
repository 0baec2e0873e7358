"""A guest that uses its disk all the time, and checks what it reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .rig.machine import Machine
from .rig.verifier import build

PLACE = "/tmp/verifier"
"""Where the program tells of itself in the guest."""


class Verifier:
    """``rig/verifier.rs`` in a guest, which may move to another machine meanwhile."""

    def __init__(self, guest: Machine, device: str = "/dev/vda") -> None:
        guest.sh(f"rm -rf {PLACE} && mkdir {PLACE}")
        guest.sh(f"dd if=/dev/zero of={device} bs=1M count=8 oflag=direct 2>/dev/null")
        guest.sh(f"verifier run {device} {PLACE} >{PLACE}/output 2>&1 &")
        self.wait_progress(guest, 1)

    def wait_progress(self, guest: Machine, more: int, *, seconds: float = 60) -> None:
        """Waits until it has had as many requests more answered; fails with it."""
        count = f"cat {PLACE}/progress 2>/dev/null || echo 0"
        guest.sh(
            f"end=$(($({count}) + {more}))\n"
            f"until test -e {PLACE}/failed || test $({count}) -ge $end; do usleep 20000; done\n"
            f"! cat {PLACE}/failed 2>/dev/null",
            seconds=seconds,
        )

    def forget_longest(self, guest: Machine) -> None:
        """Has what is the longest request begin anew."""
        guest.sh(f"rm -f {PLACE}/longest; until test -e {PLACE}/longest; do usleep 5000; done")

    def longest_ms(self, guest: Machine) -> float:
        """Milliseconds that the longest request has taken since then."""
        return int(guest.sh(f"cat {PLACE}/longest")) / 1000

    def end(self, guest: Machine) -> None:
        """Ends it, with a look at all of the disk."""
        guest.sh(
            f"touch {PLACE}/stop\n"
            f"until test -e {PLACE}/failed || test -e {PLACE}/table; do usleep 20000; done\n"
            f"! cat {PLACE}/failed 2>/dev/null"
        )

    def check(self, guest: Machine, image: Path) -> None:
        """Compares an image with what was written before the end."""
        table = image.with_suffix(".table")
        table.write_text(guest.sh(f"cat {PLACE}/table"))
        checked = subprocess.run(
            [str(build()), "check", str(image), str(table)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
