"""Whether a device can be served at all: one is, in this process, and read."""

import os
import platform
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..exits import one_line
from .finding import Finding

if TYPE_CHECKING:
    from vhost_user import BlockDevice

SIZE = 1 << 20
POSTCOPY = "PAGEFAULT"


def look() -> Iterator[Finding]:
    """What there is, whether it works, and what it offers."""
    from vhost_user import __version__

    python = f"{platform.python_implementation()} {platform.python_version()}"
    what = f"vhost-user {__version__}, {python} ({sys.executable})"
    yield Finding("version", "ok", what)
    yield Finding("kernel", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    try:
        offered = _serve_and_read()
    except Exception as error:  # Whatever it is, it is what was asked for.
        found = (
            f"a disk cannot be served in this process: {type(error).__name__}: {one_line(error)}"
        )
        advice = (
            "see what else is wrong here, and docs/troubleshooting.md for the words of the error"
        )
        yield Finding("serving", "wrong", found, advice)
        return
    yield Finding("serving", "ok", "a disk was served in this process, written and read")
    yield _postcopy(POSTCOPY in offered)


def _serve_and_read() -> list[str]:
    """The protocol features that a disk offers which was found to work."""
    from vhost_user import Backend, VirtioBlkDriver

    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        Backend(_ram_disk(), fd=theirs.fileno(), keep_listening=False),
        VirtioBlkDriver(fd=ours.fileno()) as driver,
    ):
        written = os.urandom(512)
        driver.pwrite(written, SIZE - 512)
        if driver.pread(512, SIZE - 512) != written:
            raise ValueError("the data that was read is not what was written")
        return driver.protocol_feature_names(driver.offered_protocol_features)


def _ram_disk() -> "BlockDevice":
    from vhost_user import BlockDevice

    class Ram(BlockDevice):
        memory = bytearray(SIZE)

        def read(self, offset: int, buf: memoryview) -> None:
            buf[:] = self.memory[offset : offset + len(buf)]

        def write(self, offset: int, buf: memoryview) -> None:
            self.memory[offset : offset + len(buf)] = buf

    return Ram(size=SIZE, num_queues=1)


def _postcopy(offered: bool) -> Finding:
    if offered:
        return Finding("userfaultfd", "ok", "page faults can be caught: postcopy works")
    who = "root" if os.geteuid() == 0 else "this user"
    return Finding(
        "userfaultfd",
        "note",
        f"{who} may not catch the page faults of others, which a postcopy migration needs",
        "give the back-end the capability CAP_SYS_PTRACE or rights on /dev/userfaultfd, or set "
        "vm.unprivileged_userfaultfd=1",
    )
