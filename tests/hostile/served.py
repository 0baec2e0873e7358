"""The process under attack: serves the devices that its first argument describes.

Run as a program: `served.py '{"victim": {"kind": "ram", "socket": ..., ...}, ...}'`. Each line on
standard input is a JSON list, a method of `Console` and its arguments; each answer is one JSON
line on standard output. It ends at the end of its input.
"""

import base64
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import vhost_user as vu


class Disk(vu.BlockDevice):
    """A RAM disk that notes each call, and whose callbacks wait while its gate is shut."""

    def __init__(self, *, size: int, **options: Any) -> None:
        super().__init__(size=size, **options)
        self.content = bytearray(size)
        self.calls: deque[tuple[str, int, int]] = deque(maxlen=100_000)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0

    def note(self, call: str, offset: int, length: int) -> None:
        self.calls.append((call, offset, length))
        if not self.gate.is_set():
            self.waiting += 1
            self.gate.wait()
            self.waiting -= 1

    def read(self, offset: int, buf: memoryview, /) -> None:
        self.note("read", offset, len(buf))
        buf[:] = self.content[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.note("write", offset, len(buf))
        self.content[offset : offset + len(buf)] = buf

    def flush(self) -> None:
        self.note("flush", 0, 0)

    def discard(self, offset: int, length: int, /) -> None:
        self.note("discard", offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool, /) -> None:
        self.note("write_zeroes", offset, length)
        self.content[offset : offset + length] = bytes(length)


class HoldingDisk(Disk):
    """A RAM disk that keeps each request until it is told to answer."""

    def __init__(self, *, size: int, **options: Any) -> None:
        super().__init__(size=size, **options)
        self.held: deque[vu.BlockRequest] = deque()
        self.holding = True
        self.seen = b""
        self.looks = 0
        self.reader: threading.Thread | None = None

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        for request in batch:
            self.calls.append((request.op, request.offset, request.length))
            if self.holding:
                self.held.append(request.defer())
            else:
                self.answer(request)

    def answer(self, request: vu.BlockRequest) -> None:
        if request.op == "read":
            request.copy_from(self.content[request.offset : request.offset + request.length])
        elif request.op == "write":
            end = request.offset + request.length
            request.copy_to(memoryview(self.content)[request.offset : end])

    def look_on(self) -> None:
        """Reads the data of the first request held, without end, until it is told to stop."""
        data = self.held[0].data
        while self.reader is not None:
            self.seen = bytes(data)
            self.looks += 1

    def release(self) -> list[str]:
        """Answers everything held; gives the errors that completing raised."""
        errors = []
        while self.held:
            request = self.held.popleft()
            try:
                self.answer(request)
                request.complete()
            except Exception as error:
                errors.append(type(error).__name__)
        return errors


def make(kind: str, **options: Any) -> vu.Device:
    """A device by the name of its kind."""
    if kind == "file":
        return vu.FileDisk(options.pop("path"), **options)
    return {"ram": Disk, "holding": HoldingDisk}[kind](**options)


class Console:
    """What the test may ask of this process."""

    def __init__(self, devices: dict[str, Any], backends: dict[str, vu.Backend]) -> None:
        self.devices = devices
        self.backends = backends

    def reset(self, name: str) -> None:
        """An open gate, an empty trace, zeroed content."""
        device = self.devices[name]
        if isinstance(device, HoldingDisk):
            device.release()
            device.holding = True
        if isinstance(device, Disk):
            device.gate.set()
            device.calls.clear()
            device.content[:] = bytes(len(device.content))

    def calls(self, name: str) -> list[tuple[str, int, int]]:
        """The calls since the last reset: (method, offset, length)."""
        return list(self.devices[name].calls)

    def content(self, name: str) -> str:
        """The whole disk, in base 64."""
        return base64.b64encode(self.devices[name].content).decode()

    def resize(self, name: str, size: int) -> None:
        """Another size for the disk; its content stays as long as it was."""
        self.devices[name].resize(size)

    def shut(self, name: str) -> None:
        """From now on, callbacks wait."""
        self.devices[name].gate.clear()

    def open(self, name: str) -> None:
        """Lets all waiting callbacks go."""
        self.devices[name].gate.set()

    def waiting(self, name: str) -> int:
        """How many callbacks wait at the gate."""
        return int(self.devices[name].waiting)

    def held(self, name: str) -> int:
        """How many requests are held."""
        return len(self.devices[name].held)

    def release(self, name: str) -> list[str]:
        """Answers all held requests, and all later ones at once."""
        self.devices[name].holding = False
        return list(self.devices[name].release())

    def drop(self, name: str) -> None:
        """Forgets all held requests without an answer, and answers all later ones at once."""
        self.devices[name].holding = False
        self.devices[name].held.clear()

    def look_on(self, name: str) -> None:
        """From now on a thread reads the first held request's data through one view."""
        device = self.devices[name]
        device.reader = threading.Thread(target=device.look_on)
        device.reader.start()

    def seen(self, name: str) -> str:
        """What that thread has read in one of its latest turns, in hexadecimal."""
        device = self.devices[name]
        looks = device.looks
        while device.looks < looks + 2 and device.reader.is_alive():
            time.sleep(0.001)
        return str(device.seen.hex())

    def look_away(self, name: str) -> None:
        """Ends that thread."""
        thread, self.devices[name].reader = self.devices[name].reader, None
        thread.join()

    def handle_signals(self, _: str) -> int:
        """Installs a handler that does nothing, without SA_RESTART; gives the signal's number."""
        signal.signal(signal.SIGUSR2, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR2, True)
        return int(signal.SIGUSR2)

    def state(self, name: str) -> str:
        """The back-end's state."""
        return self.backends[name].state

    def stop(self, name: str, drain: float) -> float:
        """Stops one back-end; how many seconds that took."""
        start = time.monotonic()
        self.backends[name].stop(drain=drain)
        return time.monotonic() - start

    def start(self, name: str) -> None:
        """Starts a back-end that was stopped."""
        self.backends[name].start()


def main() -> None:
    specs = json.loads(sys.argv[1])
    sockets = {name: spec.pop("socket") for name, spec in specs.items()}
    options = {name: spec.pop("backend", {}) for name, spec in specs.items()}
    devices = {name: make(**spec) for name, spec in specs.items()}
    backends = {
        name: vu.Backend(device, socket=sockets[name], **{"drain": 2, **options[name]}).start()
        for name, device in devices.items()
    }
    console = Console(devices, backends)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            answer = {"value": getattr(console, method)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    for backend in backends.values():
        backend.stop(drain=0.1)


if __name__ == "__main__":
    main()
