"""What a process holds, read from /proc: descriptors, mappings of guest memory, threads, memory."""

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .memory import NAME
from .patience import PATIENCE

PF_EXITING = 0x4
"""Set among a thread's flags in /proc (see proc(5)) before anybody who joins it is told."""


class Holdings(NamedTuple):
    """What a process holds at one moment."""

    descriptors: Counter[str]
    guest_mappings: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Holdings":
        """Counts now."""
        return cls(descriptors(pid), guest_mappings(pid), threads(pid))

    @classmethod
    def at_rest(cls, pid: int) -> "Holdings":
        """Counts once they no longer change: a thread that was joined may be listed a moment on."""
        found = cls.of(pid)
        while True:
            time.sleep(0.005)
            former, found = found, cls.of(pid)
            if former == found:
                return found


def descriptors(pid: int) -> Counter[str]:
    """Open descriptors by what they are: 'socket', 'anon_inode:[eventfd]', '/memfd:name' ..."""
    kinds: Counter[str] = Counter()
    folder = Path(f"/proc/{pid}/fd")
    for entry in os.listdir(folder):
        try:
            target = os.readlink(folder / entry)
        except FileNotFoundError:  # closed since it was listed
            continue
        # Neither the listing's own descriptor nor a module that is just being imported.
        if target != f"/proc/{pid}/fd" and not target.endswith((".py", ".pyc")):
            kinds[re.sub(r":\[\d+\]$", "", target)] += 1
    return kinds


def guest_mappings(pid: int) -> int:
    """Lines of /proc/PID/maps that show the peer's guest memory, neighbours counted one by one."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return sum(f"/memfd:{NAME}" in line for line in maps.splitlines())


def threads(pid: int) -> int:
    """Threads that are not on their way out: the kernel lists one for a while after its join."""
    folder = Path(f"/proc/{pid}/task")
    count = 0
    for entry in os.listdir(folder):
        try:
            stat = (folder / entry / "stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):  # gone since it was listed
            continue
        count += not int(stat.rpartition(")")[2].split()[6]) & PF_EXITING
    return count


def private_kib(pid: int) -> int:
    """Resident memory of its own, in KiB: shared guest memory not counted."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    if not found:
        raise AssertionError("no RssAnon in /proc/PID/status")
    return int(found[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_stopped(pid: int) -> bool:
    """Whether a signal has stopped all threads of a process."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    states = [stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] for stat in stats]
    return set(states) == {"T"}


@contextlib.contextmanager
def asleep(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile. On a busy machine its threads run on for a while after
    the signal: until one of them has taken it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        assert eventually(lambda: has_stopped(pid)), f"process {pid} does not stop"
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def eventually(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Polls until something holds; False when it does not in time."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return True


def settles(pid: int, before: Holdings, seconds: float = PATIENCE) -> str:
    """Waits until a process holds what it held before; otherwise says what differs."""
    if eventually(lambda: Holdings.of(pid) == before, seconds):
        return ""
    now = Holdings.of(pid)
    more = now.descriptors - before.descriptors
    fewer = before.descriptors - now.descriptors
    return (
        f"descriptors: more {dict(more)}, fewer {dict(fewer)}; "
        f"guest mappings: {before.guest_mappings} -> {now.guest_mappings}; "
        f"threads: {before.threads} -> {now.threads}"
    )
