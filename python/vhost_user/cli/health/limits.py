"""Limits of this process, and of the host, that a back-end may run into."""

import resource
from collections.abc import Iterator

from ..sizes import format_size
from .finding import Finding
from .host import Host

DESCRIPTORS = 256
"""What a back-end for one guest has open at most times: one for each region of memory while that is
mapped, three for each queue, and its own."""

SIGNALS = 1024
"""Signals of the kernel (fs.aio-max-nr) that should be left for back-ends that start."""

IO_URING = {
    0: "any process may use it",
    1: "privileged processes alone may use it (kernel.io_uring_disabled=1)",
    2: "nobody may use it (kernel.io_uring_disabled=2)",
}


def look(host: Host) -> Iterator[Finding]:
    """Descriptors, address space, the kernel's asynchronous I/O."""
    yield _descriptors()
    yield _address_space()
    yield _signals(host)
    yield _io_uring(host)


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_count(soft)} at a time, up to {_count(hard)} if asked for (RLIMIT_NOFILE)"
    if 0 <= soft < DESCRIPTORS:
        advice = "raise it: ulimit -n 4096, or LimitNOFILE=4096 in a unit"
        return Finding("descriptors", "wrong", found, advice)
    return Finding("descriptors", "ok", found)


def _address_space() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return Finding("address space", "ok", "without limit")
    found = (
        f"{format_size(soft)}, in which the whole memory of a guest has to be mapped (RLIMIT_AS)"
    )
    advice = "take the limit away: ulimit -v unlimited, or no LimitAS= in a unit"
    return Finding("address space", "note", found, advice)


def _signals(host: Host) -> Finding:
    most = host.number("/proc/sys/fs/aio-max-nr")
    used = host.number("/proc/sys/fs/aio-nr")
    if most is None or used is None:
        found = "the kernel does not tell of its asynchronous I/O, by which calls are signalled"
        return Finding("signals", "note", found, "see whether serving is ok above")
    found = f"{used} of {most} in use (fs.aio-max-nr)"
    if most - used < SIGNALS:
        advice = f"raise it: sysctl fs.aio-max-nr={max(2 * most, 1 << 20)}"
        return Finding("signals", "wrong", found, advice)
    return Finding("signals", "ok", found)


def _io_uring(host: Host) -> Finding:
    disabled = host.number("/proc/sys/kernel/io_uring_disabled")
    if disabled is None:
        who = "not known; the kernel is older than Linux 6.6, or has none"
    else:
        who = IO_URING.get(disabled, f"kernel.io_uring_disabled={disabled}")
    return Finding("io_uring", "ok", f"{who}; back-ends of this version do without")


def _count(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else str(limit)
