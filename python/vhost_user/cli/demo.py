"""``vhost-user demo``: serves disks, drives them through their sockets and checks every byte.

Each disk is served by a process of its own, as in production; this one is the front-end.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vhost_user.limits import DAY

from .exits import Exit, Failure, one_line
from .parser import checked
from .sizes import about, multiple_of, seconds_in
from .streams import note, out
from .table import render

if TYPE_CHECKING:
    from vhost_user import LoadReport, VirtioBlkDriver

SIZE = 64 << 20
MAX_DISK = (1 << 63) - 512
"""The largest disk that there can be."""

PIECE = 1 << 20
"""Bytes written and read at a time by the check of the whole disk."""

FLUSH = 1 << 9
"""VIRTIO 1.3, "Block Device", "Feature bits": the disk has a write cache to flush."""

END_LIMIT = 10.0
"""Seconds for a server to end when it is asked to. Requests in flight may take 5 of them."""

EXAMPLES = "vhost_user.examples"


class Disk:
    """One disk of the demo: what it is called in the table, and the command that serves it."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.command = command


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.add_argument(
        "--device",
        metavar="TARGET",
        help="drive this block device instead, FILE.py:Class as for vhost-user run; it is "
        "overwritten",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="the options of that device"
    )
    parser.add_argument(
        "--size",
        type=checked(multiple_of(512, MAX_DISK)),
        default=SIZE,
        metavar="SIZE",
        help="size of the disks (64M); for a device that has an option of that name",
    )
    parser.add_argument(
        "--seconds",
        type=checked(seconds_in(0.001, DAY)),
        default=0.5,
        metavar="S",
        help="seconds to measure a disk (0.5)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    if options.settings and not options.device:
        raise Failure("key=value needs --device", status=Exit.USAGE)
    # Ended in whatever way, the demo leaves no server and no file behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows: list[Sequence[str]] = [("", "operations", "bytes", "requests/s")]
    with tempfile.TemporaryDirectory(prefix="vhost-user-demo-") as directory:
        for disk in _disks(options, Path(directory)):
            if sys.stderr is not None and sys.stderr.isatty():
                note(f"{disk.name} ...")
            with _served(disk, Path(directory, "disk.sock")) as socket:
                report = drive(disk.name, socket, options.seconds)
            rows.append(_row(disk.name, report))
    out(render(rows))
    out("all data read was the data written")
    return Exit.OK


def drive(name: str, socket: Path, seconds: float) -> "LoadReport":
    """Checks the whole disk at ``socket`` and measures it; then checks again what it was full of.

    While it is measured one request in 64 is checked: more would measure the check.
    """
    from vhost_user import VhostUserError, VirtioBlkDriver

    try:
        with VirtioBlkDriver(socket) as driver:
            check_whole_disk(name, driver)
            driver.prepare_load()
            measured = driver.run_load("randread", seconds=seconds, verify="sampled")
            requests = max(1, driver.size // 4096)
            after = driver.run_load("read", ops=requests, verify="all")
    except (VhostUserError, OSError, ValueError) as error:
        raise Failure(f"{name}: {one_line(error)}") from error
    for report in (measured, after):
        check_report(name, report)
    return measured


def check_report(name: str, report: "LoadReport") -> None:
    """:class:`Failure` if a request failed or read wrong data."""
    if report.mismatches:
        wrong = f"{report.mismatches} of {report.verified} requests read wrong data"
        raise Failure(f"{name}: wrong data: {wrong}, the first at byte {report.first_mismatch}")
    if report.errors:
        raise Failure(f"{name}: {report.errors} of {report.ops} requests failed")


def check_whole_disk(name: str, driver: "VirtioBlkDriver") -> None:
    """Writes random bytes to all of the disk, flushes, reads it back and compares checksums."""
    written = []
    for offset, length in _pieces(driver.size):
        data = os.urandom(length)
        driver.pwrite(data, offset)
        written.append(hashlib.sha256(data).digest())
    if driver.features & FLUSH:
        driver.flush()
    for (offset, length), checksum in zip(_pieces(driver.size), written, strict=True):
        if hashlib.sha256(driver.pread(length, offset)).digest() != checksum:
            where = f"bytes {offset} to {offset + length - 1}"
            raise Failure(f"{name}: wrong data: {where} are not what was written there")


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    return ((offset, min(PIECE, size - offset)) for offset in range(0, size, PIECE))


def _disks(options: argparse.Namespace, directory: Path) -> list[Disk]:
    if options.device:
        return [Disk(options.device, _run_command(options.device, options.settings, options.size))]
    image = directory / "disk.img"
    with open(image, "wb") as file:
        file.truncate(options.size)
    size = [f"size={options.size}"]
    return [
        Disk("Python, a call a request", ["run", f"{EXAMPLES}.ramdisk:RamDisk", *size]),
        Disk("Python, a call a batch", ["run", f"{EXAMPLES}.batched:BatchedRamDisk", *size]),
        Disk("Rust, a file", ["blk", "--blk-file", str(image)]),
    ]


def _run_command(device: str, settings: list[str], size: int) -> list[str]:
    from .settings import parameters
    from .target import load

    sized = any(word.startswith("size=") for word in settings)
    if not sized and "size" in parameters(load(device)):
        settings = [*settings, f"size={size}"]
    return ["run", device, *settings]


@contextmanager
def _served(disk: Disk, socket: Path) -> Iterator[Path]:
    """Serves a disk in another process while the body runs."""
    command = [sys.executable, "-m", "vhost_user", *disk.command, "--socket-path", str(socket)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C is for us; the server ends when we say so.
    ) as server:
        try:
            _wait_until_listening(disk, server)
            yield socket
        finally:
            _end(server)


def _wait_until_listening(disk: Disk, server: subprocess.Popen[str]) -> None:
    """Reads what the server says until it says that the socket is there."""
    assert server.stderr is not None
    last = "it said nothing"
    for line in server.stderr:
        if line.startswith("listening on "):
            return
        last = line.strip().removeprefix("vhost-user: ") or last
    raise Failure(f"{disk.name}: the server did not start: {last}")


def _end(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        server.wait(END_LIMIT)
    except subprocess.TimeoutExpired:
        server.kill()


def _row(name: str, report: "LoadReport") -> tuple[str, ...]:
    return (name, f"{report.ops:,}", about(report.bytes), f"{report.iops:,.0f}")
