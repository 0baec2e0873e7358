"""The test's handle on the process under attack, and the account of what it holds."""

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TypeVar

from peer import wire
from peer.front_end import FrontEnd
from peer.memory import GuestMemory, memfd
from peer.numbers import Request
from peer.patience import is_readable
from peer.process import Holdings, eventually, private_kib, settles

SERVED = Path(__file__).with_name("served.py")
SIZE = 1 << 20
"""Bytes of each disk unless a test asks for another."""
WITNESS_SECONDS = 1.0
VICTIM_SECONDS = 10.0
ANSWER_SECONDS = 20.0


class Closable(Protocol):
    """What can be closed at the end of a test."""

    def close(self) -> None: ...


Tracked = TypeVar("Tracked", bound=Closable)


class Server:
    """A process that serves a `victim` and a `witness`."""

    def __init__(self, folder: Path, victim: dict[str, Any]) -> None:
        self.folder = folder
        witness = {"kind": "ram", "size": SIZE}
        sized = {} if "path" in victim else {"size": SIZE}
        specs = {"victim": {**sized, **victim}, "witness": witness}
        if victim["kind"] == "file" and "path" not in victim:
            specs["victim"] = self._image(victim)
        for name, spec in specs.items():
            spec["socket"] = self.path(name)
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVED), json.dumps(specs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self._answer() == "ready"
        self._witness = FrontEnd.connect(self.path("witness"), GuestMemory()).start()
        self._witness_read = self._witness.blk().prepare(0, 0, room=512)
        self.check_witness()
        self._tracked: list[Closable] = []
        self._before = Holdings.at_rest(self.pid)
        self.private_kib_before = 0

    def _image(self, victim: dict[str, Any]) -> dict[str, Any]:
        image = self.folder / "image"
        size = victim.pop("size", SIZE)
        image.write_bytes(bytes(size))
        return {"path": str(image), **victim}

    @property
    def image(self) -> Path:
        """The image of a victim of kind `file`."""
        return self.folder / "image"

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def path(self, name: str = "victim") -> str:
        """A device's socket."""
        return str(self.folder / f"{name}.sock")

    # What a test does with it.

    def begin(self) -> None:
        """Before a test: a fresh device and the count of what the process holds."""
        self.ask("reset")
        self._before = Holdings.at_rest(self.pid)
        self.private_kib_before = private_kib(self.pid)

    def connect(self, memory: GuestMemory | None = None) -> FrontEnd:
        """A connection to the victim; closed at the end of the test."""
        return self.track(FrontEnd.connect(self.path(), memory))

    def channel(self) -> wire.Channel:
        """A bare connection to the victim; closed at the end of the test."""
        return self.track(wire.Channel.connect(self.path()))

    def started(self, queues: int = 1, size: int = 64, **options: Any) -> FrontEnd:
        """A connection with running rings."""
        return self.connect(options.pop("memory", None)).start(queues, size, **options)

    def memfd(self, size: int = 4096) -> int:
        """A descriptor to send; closed at the end of the test."""
        return self.own(memfd(size))

    def eventfd(self) -> int:
        """An eventfd to send; closed at the end of the test."""
        return self.own(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def own(self, fd: int) -> int:
        """Closes a descriptor at the end of the test."""
        self._tracked.append(_Descriptor(fd))
        return fd

    def track(self, closable: Tracked) -> Tracked:
        """Closes something at the end of the test."""
        self._tracked.append(closable)
        return closable

    def ask(self, method: str, *arguments: Any, name: str = "victim") -> Any:
        """Calls a method of the process's console on one device."""
        assert self.process.stdin is not None
        line = json.dumps([method, name, *arguments]) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self._died()
        answer = self._answer()
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["value"]

    def calls(self) -> list[tuple[str, int, int]]:
        """The victim's callbacks since the test began: (method, offset, length)."""
        return [tuple(call) for call in self.ask("calls")]

    def content(self) -> bytes:
        """All of the victim's disk."""
        return base64.b64decode(self.ask("content"))

    def awaits(self, method: str, value: Any, seconds: float = 5.0) -> bool:
        """Polls until the console answers `value`."""
        return eventually(lambda: self.ask(method) == value, seconds)

    # What holds after every test.

    def end(self) -> None:
        """After a test: hangs up, and checks that both devices answer and that nothing is left."""
        self.hang_up()
        self.check_witness()
        self.check_victim()
        difference = settles(self.pid, self._before)
        assert not difference, f"the process does not hold what it held before: {difference}"

    def hang_up(self) -> None:
        """Closes all connections to the victim and all descriptors of the test."""
        while self._tracked:
            with contextlib.suppress(OSError):
                self._tracked.pop().close()

    def check_witness(self, seconds: float = WITNESS_SECONDS) -> None:
        """The other device answers a read in time."""
        if self.process.poll() is not None:
            self._died()
        result = self._witness.blk().run(self._witness_read, seconds)
        assert result.status == 0, f"the witness answered {result.status}"

    def check_victim(self) -> None:
        """The victim takes the next front-end. All that dialled before have then had their turn."""
        channel = wire.Channel.connect(self.path())
        channel.socket.settimeout(VICTIM_SECONDS)
        assert channel.ask_u64(Request.GET_FEATURES)
        channel.close()

    def settled(self) -> str:
        """What differs from the beginning of the test, after some time to settle."""
        return settles(self.pid, self._before)

    def log(self) -> str:
        """What the process has written to its standard error so far: a thread of its own does."""
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def assert_logs(self, *texts: str, after: int = 0) -> None:
        """The log comes to have each of `texts` behind its first `after` characters."""
        assert eventually(lambda: all(text in self.log()[after:] for text in texts)), self.log()

    def has_said_much(self) -> bool:
        """Its next lines may be counted and not told: of a kind a hundred are."""
        return self.log().count("\n") > 50

    def close(self) -> int:
        """Ends the process; gives its exit status."""
        self.hang_up()
        self._witness.close()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.process.stdout.close()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        deadline = time.monotonic() + ANSWER_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            if not is_readable(self.process.stdout.fileno(), deadline - time.monotonic()):
                raise AssertionError(f"the process does not answer\n{self.log()}")
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            if not part:
                self._died()
            line += part
        return json.loads(line)

    def _died(self) -> None:
        status = self.process.wait(5)
        raise AssertionError(f"the process died with {status}\n{self.log()}")


class _Descriptor:
    """A descriptor with a `close`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)
