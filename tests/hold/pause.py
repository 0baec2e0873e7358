"""How long a driver waits for a back-end that is killed: ``python -m hold.pause [KILLS]``, in
``tests``.

Each kill comes when the back-end has served for a second, as the keeper pauses before it follows
one that has died at once. Measured is the time from SIGKILL to the answer of a request that is made
right after it, for each kind of back-end.
"""

import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from .conftest import BACK_ENDS, IMAGE
from .held import Held, sector

SERVED = 1.05
"""Seconds between one answer and the next kill."""


def pauses(command: list[str], kills: int) -> list[float]:
    """Milliseconds that each request has waited."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / IMAGE).write_bytes(bytes(1 << 20))
        with Held.around(folder, *command) as held:
            front = held.connect().start()
            found = []
            for _ in range(kills):
                time.sleep(SERVED)
                begun = time.monotonic()
                os.kill(held.back_end(), signal.SIGKILL)
                sector(front)
                found.append((time.monotonic() - begun) * 1000)
                held.assert_says(" goes on, ", len(found))
            front.channel.close()
            return found


def main() -> None:
    """Prints a line for each kind of back-end."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for name, command in BACK_ENDS.items():
        found = pauses(command, kills)
        median, worst = statistics.median(found), max(found)
        print(f"{name}: {kills} kills, median {median:.0f} ms, worst {worst:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
