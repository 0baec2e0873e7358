"""Memory that a guest can share with a back-end."""

import os
from collections.abc import Iterator

from ..exits import one_line
from ..sizes import format_size
from .finding import Finding
from .host import Host

HUGE = "/sys/kernel/mm/hugepages"
MAPS = "/proc/sys/vm/max_map_count"

REGIONS = 509 + 16
"""Mappings for the memory of one front-end with all its slots, and some for the rest."""


def look(host: Host) -> Iterator[Finding]:
    """Memory files, huge pages, and how much may be mapped."""
    yield _memfd()
    yield _huge_pages(host)
    count = host.number(MAPS)
    if count is not None and count < REGIONS:
        found = f"a process may have {count} mappings (vm.max_map_count)"
        advice = "raise it: sysctl vm.max_map_count=65530"
        yield Finding("mappings", "wrong", found, advice)


def _memfd() -> Finding:
    try:
        os.close(os.memfd_create("vhost-user-doctor"))
    except OSError as error:
        found = f"memory files cannot be made: {one_line(error)}"
        advice = "share the guest's memory as a file in /dev/shm: QEMU's memory-backend-file"
        return Finding("memfd", "note", found, advice)
    return Finding("memfd", "ok", "memory files can be made (memory-backend-memfd of QEMU)")


def _huge_pages(host: Host) -> Finding:
    pools = []
    for name in host.names(HUGE):
        total = host.number(f"{HUGE}/{name}/nr_hugepages") or 0
        free = host.number(f"{HUGE}/{name}/free_hugepages") or 0
        size = name.removeprefix("hugepages-").removesuffix("kB")
        if total and size.isdecimal():
            pools.append(f"{free} of {total} pages of {format_size(int(size) << 10)} free")
    if pools:
        return Finding("huge pages", "ok", ", ".join(pools))
    advice = (
        "reserve some where a guest is to have them: sysctl vm.nr_hugepages=256, and "
        "memory-backend-memfd,hugetlb=on,size=512M,share=on for QEMU"
    )
    found = "none are reserved; guests do without"
    return Finding("huge pages", "note", found, advice)
