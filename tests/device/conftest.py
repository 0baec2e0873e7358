"""Serving a device in this process, and the account of what it leaves behind."""

import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.memory import GuestMemory
from peer.process import Holdings, settles

SIZE = 1 << 20


class RamDisk(vu.BlockDevice):
    """The smallest disk that works."""

    def __init__(self, **options: Any) -> None:
        super().__init__(size=SIZE, **options)
        self.content = bytearray(SIZE)

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = self.content[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.content[offset : offset + len(buf)] = buf

    def flush(self) -> None:
        pass


class Bench:
    """Back-ends and front-ends of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backends: list[vu.Backend] = []
        self.fronts: list[FrontEnd] = []

    def serve(self, device: vu.Device, **options: Any) -> vu.Backend:
        """Starts a back-end for a device."""
        path = self.folder / f"{len(self.backends)}.sock"
        self.backends.append(vu.Backend(device, socket=path, **options))
        return self.backends[-1].start()

    def connect(self, memory: GuestMemory | None = None, which: int = -1) -> FrontEnd:
        """A front-end to a back-end, by default the last; no message is sent."""
        number = range(len(self.backends))[which]
        self.fronts.append(FrontEnd.connect(str(self.folder / f"{number}.sock"), memory))
        return self.fronts[-1]

    def drive(self, device: vu.Device, *, queues: int = 1, **options: Any) -> FrontEnd:
        """Serves a device; gives a front-end with running rings."""
        self.serve(device, **options)
        return self.connect().start(queues)

    @property
    def backend(self) -> vu.Backend:
        """The last back-end."""
        return self.backends[-1]

    def check_witness(self) -> None:
        """The first device answers a read within a second."""
        assert self.fronts[0].blk().read(0, 512, 1.0).status == 0

    def close(self) -> None:
        """Hangs up and stops everything."""
        for front in self.fronts:
            front.close()
        for backend in self.backends:
            backend.stop(drain=0.2)
        self.fronts.clear()
        self.backends.clear()  # what a stopped back-end holds goes with its object


@contextlib.contextmanager
def bench_in(folder: Path) -> Iterator[Bench]:
    bench = Bench(folder)
    try:
        bench.drive(RamDisk())
        yield bench
        bench.check_witness()
    finally:
        bench.close()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets, whatever the test's name."""
    folder = Path(tempfile.mkdtemp(prefix="vu"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first device of a process makes once for all: imports, threads for logging."""
    with bench_in(tmp_path_factory.mktemp("vu")):
        pass


@pytest.fixture
def bench(socket_folder: Path, warm: None) -> Iterator[Bench]:
    """A witness is being served; the test adds its own device."""
    gc.collect()  # or it takes what an earlier test's tracebacks hold in the middle of this one
    before = Holdings.at_rest(os.getpid())
    with bench_in(socket_folder) as running:
        yield running
    difference = settles(os.getpid(), before)
    assert not difference, f"not everything was given back: {difference}"


Drive = Callable[..., FrontEnd]


@pytest.fixture
def drive(bench: Bench) -> Drive:
    """`drive(device)` serves it and gives a front-end with a running ring."""
    return bench.drive
