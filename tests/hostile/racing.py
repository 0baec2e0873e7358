"""Other processors of the guest: programs that write to its memory beside a test."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from peer.memory import Region

MIB = 1 << 20
GIB = 1 << 30
FLIPPER = Path(__file__).with_name("flipper.py")
FLOODER = Path(__file__).with_name("flooder.py")


@contextlib.contextmanager
def running(program: Path, *arguments: int | str) -> Iterator[None]:
    """Another processor of the guest: runs a program beside the body. Numbers that are open
    descriptors are passed on."""
    descriptors = [n for n in arguments if isinstance(n, int) and Path(f"/dev/fd/{n}").exists()]
    process = subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        pass_fds=descriptors,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        yield
        assert process.poll() is None, "the other processor stopped"
    finally:
        process.kill()
        process.communicate()


def flipping(
    region: Region, address: int, one: bytes, other: bytes
) -> contextlib.AbstractContextManager[None]:
    """Flips bytes of guest memory while the body runs."""
    offset = address - region.guest + region.offset
    return running(FLIPPER, region.fd, str(offset), one.hex(), other.hex())
