"""How long a driver waits for a back-end that is killed, and for a keeper: ``python -m hold.pause
[KILLS]``, in ``tests``.

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
from .held import COMMAND, SOCKET, Held, sector
from .manager import Manager

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


def pauses_of_keepers(command: list[str], kills: int) -> list[float]:
    """The same when the keeper is killed, and a service manager starts the next at once."""
    with tempfile.TemporaryDirectory() as name, Manager(Path(name)) as manager:
        (Path(name) / IMAGE).write_bytes(bytes(1 << 20))
        words = [*COMMAND, "hold", SOCKET, "--", *command]
        held = manager.start(words)
        front = held.connect().start()
        found = []
        for _ in range(kills):
            begun = time.monotonic()
            held.process.kill()
            held.process.wait()
            held = manager.start(words)
            sector(front)
            found.append((time.monotonic() - begun) * 1000)
        front.channel.close()
        held.end()
        return found


def main() -> None:
    """Prints a line for each kind of back-end."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for measured in (pauses, pauses_of_keepers):
        for name, command in BACK_ENDS.items():
            found = measured(command, kills)
            median, worst = statistics.median(found), max(found)
            what = f"{measured.__name__}, {name}: {kills} kills"
            print(f"{what}, median {median:.0f} ms, worst {worst:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
