"""Two back-ends have one image, as those of a guest that migrates do: its rings run in one of them
at a time."""

import contextlib
import fcntl
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import vhost_user as vu
from peer import wire
from peer.blk import Status
from peer.front_end import FrontEnd
from peer.numbers import Request
from peer.process import eventually

SIZE = 1 << 20
BLOCK = 4096
OLD, NEW = b"o" * BLOCK, b"n" * BLOCK
STARTS_WITHIN = 60.0


class Blk:
    """``vhost-user blk`` on the image in a folder; a context manager that ends it."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        words = ["blk", str(folder / "disk.img"), "--socket-path", str(self.socket), *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vhost_user", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        assert eventually(self._has_begun, STARTS_WITHIN), "it neither serves nor ends"

    def _has_begun(self) -> bool:
        return "listening" in self.said or self.process.poll() is not None

    @property
    def said(self) -> str:
        """Its log so far."""
        return self._log.read_text()

    def assert_says(self, text: str) -> None:
        """Waits for its log."""
        assert eventually(lambda: text in self.said), f"no {text!r} in: {self.said}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


class Guest:
    """A front-end whose one ring stops and starts again as a machine's does."""

    def __init__(self, blk: Blk) -> None:
        self.front = FrontEnd.connect(str(blk.socket))
        self.front.negotiate().share_memory()
        self.front.add_ring()
        self._base = 0

    def is_refused(self) -> bool:
        """Whether its ring cannot start."""
        ring = self.front.rings[0]
        self.front.configure_ring(base=self._base)
        return self.front.is_refused(Request.SET_VRING_KICK, wire.u64(0), [ring.kick_fd])

    def run(self) -> None:
        """Starts the ring."""
        self.front.start_ring(base=self._base)

    def pause(self) -> None:
        """Stops the ring."""
        self._base = self.front.stop_ring()

    def write(self, data: bytes) -> None:
        """Writes the first block."""
        assert self.front.blk().write(0, data).status == Status.OK

    def read(self) -> bytes:
        """Reads the first block."""
        return self.front.blk().read(0, BLOCK).data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.front.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image."""
    (tmp_path / "disk.img").write_bytes(bytes(SIZE))
    return tmp_path


@pytest.fixture
def source(folder: Path) -> Iterator[Blk]:
    with Blk(folder, "source") as blk:
        yield blk


@pytest.fixture
def destination(source: Blk, folder: Path) -> Iterator[Blk]:
    """Starts while the source serves."""
    with Blk(folder, "destination", "--incoming") as blk:
        assert "listening" in blk.said
        yield blk


def test_the_image_goes_with_the_guest_and_comes_back(source: Blk, destination: Blk) -> None:
    with Guest(source) as here, Guest(destination) as there:
        here.run()
        here.write(OLD)
        assert there.is_refused()
        holder = f"disk.img is in use: process {source.process.pid} ("
        destination.assert_says("refused: SET_VRING_KICK: queue 0: ")
        destination.assert_says(holder)

        here.pause()
        there.run()
        assert there.read() == OLD
        there.write(NEW)
        assert here.is_refused()
        source.assert_says(f"disk.img is in use: process {destination.process.pid} (")

        there.pause()
        here.run()
        assert here.read() == NEW
        assert there.is_refused()


def test_a_guest_whose_destination_never_ran_goes_on(source: Blk, destination: Blk) -> None:
    with Guest(source) as here:
        here.run()
        here.write(OLD)
        here.pause()
        here.run()
        assert here.read() == OLD
        assert "in use" not in source.said
        assert "somebody else" not in source.said
        with Guest(destination) as there:
            assert there.is_refused()


def test_a_killed_source_holds_nothing(source: Blk, destination: Blk) -> None:
    with Guest(source) as here, Guest(destination) as there:
        here.run()
        here.write(OLD)
        assert there.is_refused()
        source.process.kill()
        source.process.wait()
        there.run()
        assert there.read() == OLD


def test_a_guest_that_leaves_without_a_stop_leaves_the_image(source: Blk, destination: Blk) -> None:
    with Guest(source) as here, Guest(destination) as there:
        here.run()
        here.write(OLD)
        here.front.close()
        assert eventually(lambda: not there.is_refused())
        there.pause()
        there.run()
        assert there.read() == OLD


@pytest.mark.parametrize("paused", [False, True])
def test_an_image_is_refused_to_others_while_its_guest_runs_and_while_it_is_paused(
    source: Blk, folder: Path, paused: bool
) -> None:
    with Guest(source) as guest:
        guest.run()
        if paused:
            guest.pause()
        for options in ([], ["--read-only"]):
            with Blk(folder, "other", *options) as other:
                assert other.process.wait(STARTS_WITHIN) == 1
                assert "cannot open disk image " in other.said
                assert f"it is in use: process {source.process.pid} (" in other.said


def test_rings_do_not_run_while_a_program_uses_the_image(source: Blk, folder: Path) -> None:
    """QEMU locks bytes from 100 on of an image that it uses: qemu(1), "locking="."""
    with Guest(source) as guest:
        guest.run()
        with (folder / "disk.img").open("rb") as file:
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0)
            with pytest.raises(BlockingIOError):
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            guest.pause()
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            assert guest.is_refused()
        guest.run()


def test_a_destination_has_the_size_that_the_image_has_when_the_guest_comes(
    folder: Path,
) -> None:
    image = folder / "disk.img"
    source, destination = vu.FileDisk(image), vu.FileDisk(image, incoming=True)
    with contextlib.ExitStack() as stack:
        for disk in (source, destination):
            socket = folder / f"{disk.incoming}.sock"
            stack.enter_context(vu.Backend(disk, socket=socket))
        with vu.VirtioBlkDriver(folder / "False.sock") as here:
            here.pwrite(OLD, 0)
            with image.open("r+b") as file:
                file.truncate(2 * SIZE)
            source.resize(2 * SIZE)
            assert here.wait_config_change()
            here.pwrite(NEW, 2 * SIZE - BLOCK)
        with vu.VirtioBlkDriver(folder / "True.sock") as there:
            assert there.wait_config_change()
            assert there.size == 2 * SIZE
            assert there.pread(BLOCK, 0) == OLD
            assert there.pread(BLOCK, 2 * SIZE - BLOCK) == NEW


def test_a_guest_whose_image_others_have_changed_is_told(source: Blk, folder: Path) -> None:
    with Guest(source) as guest:
        guest.run()
        guest.write(OLD)
        guest.pause()
        image = folder / "disk.img"
        before = image.stat().st_mtime_ns

        def changed() -> bool:
            with image.open("r+b") as file:
                file.write(NEW)
            return image.stat().st_mtime_ns != before

        assert eventually(changed)
        guest.run()
        source.assert_says("disk.img was written to by somebody else since the rings stopped")


def test_incoming_is_true_or_false(folder: Path) -> None:
    with pytest.raises(TypeError, match="incoming is True or False, not 1"):
        vu.FileDisk(folder / "disk.img", incoming=1)  # type: ignore[arg-type]
