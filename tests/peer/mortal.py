"""A back-end that is killed, and a front-end that hands its record of requests to the next one."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from . import wire
from .front_end import WANTED, FrontEnd
from .memory import GuestMemory
from .numbers import ProtocolFeature
from .numbers import Request as Message
from .process import eventually


class Mortal:
    """A back-end that is killed and started anew, in a folder with its image."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self._folder = folder
        self._words = words
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *self._words], cwd=self._folder)

    def replace(self) -> None:
        """Kills it, and starts the next one."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = self._start()

    def connect(self, memory: GuestMemory | None = None) -> FrontEnd:
        """Dials until it listens."""
        found: list[FrontEnd] = []

        def dial() -> bool:
            assert self._process.poll() is None, "the back-end has ended"
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                found.append(FrontEnd.connect(str(self._folder / "disk.sock"), memory))
            return bool(found)

        assert eventually(dial, 60)
        return found[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def negotiate(front: FrontEnd, *, never: int = 0) -> None:
    """Accepts all that is usual but `never`, and the record of requests in flight."""
    front.negotiate(protocol=WANTED | ProtocolFeature.INFLIGHT_SHMFD, never=never)
    assert front.protocol & ProtocolFeature.INFLIGHT_SHMFD


def new_record(front: FrontEnd) -> tuple[bytes, int]:
    """What GET_INFLIGHT_FD answers: its payload and the descriptor."""
    front.channel.command(Message.GET_INFLIGHT_FD, wire.inflight(0, 0, 1, 128))
    payload = front.channel.answer_to(Message.GET_INFLIGHT_FD)
    (fd,) = front.channel.descriptors
    front.channel.descriptors.clear()
    return payload, fd


def come_back(
    mortal: Mortal, former: FrontEnd, record: tuple[bytes, int], *, never: int = 0
) -> FrontEnd:
    """A new connection with the former one's memory, rings and record, as QEMU makes it."""
    former.channel.close()
    front = mortal.connect(former.memory)
    negotiate(front, never=never)
    front.rings = former.rings
    payload, fd = record
    front.change(Message.SET_INFLIGHT_FD, payload, [fd])
    front.share_memory()
    front.start_ring(base=front.rings[0].used_index)
    return front
