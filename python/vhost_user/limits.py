"""How large the numbers may be that options are, of the classes and of the command."""

DAY = 86400.0
"""Seconds: the longest time to wait."""

MAX_BATCH = 32768
"""Requests: as many as the largest ring has."""

MAX_THREADS = 65535
"""As many as a device can have queues."""

MAX_POLL_US = 1000000
"""The longest busy polling: a second."""

MAX_CPU = 65535
"""Past all processors that Linux can be built for."""

MAX_FD = (1 << 31) - 1
"""The largest number that a descriptor can have."""

MAX_GROUP = (1 << 32) - 2
"""The last number of a group: the one after it means none."""

MAX_SIZE = (1 << 64) - 1
"""Most bytes that a number of 64 bits says."""

MAX_MODE = 0o777
"""All permission bits."""
