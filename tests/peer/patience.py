"""How long a test waits for what must come."""

import select

PATIENCE = 60.0
"""Seconds until a wait is given up, which is an error of the test's.

It says nothing of how fast anything has to be: on a machine that has other things to do, or that is
emulated, what takes a millisecond elsewhere has taken many seconds.
"""


def is_readable(fd: int, seconds: float) -> bool:
    """Whether there comes something to read, or an end, within so many seconds.

    Unlike `select` it takes descriptors of any number.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))
