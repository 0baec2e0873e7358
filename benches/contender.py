"""What is measured: a server process on one core, and the client that loads it from the other."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVER_CPU, CLIENT_CPU = 0, 1
HERE = Path(__file__).resolve().parent
TOOL = str(Path(sys.executable).with_name("vhost-user"))
START_SECONDS = 10.0


@dataclass(frozen=True)
class Result:
    """One run. `cpu_us`: processor time of the server for one request, in microseconds."""

    iops: float
    cpu_us: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Load:
    """Random reads of 4 KiB. `polling`: the driver polls for answers instead of sleeping."""

    depth: int
    seconds: float
    polling: bool = False

    @property
    def name(self) -> str:
        return f"QD {self.depth}, driver {'polls' if self.polling else 'sleeps'}"


@dataclass(frozen=True)
class Contender:
    """`command` gets the socket's path and the path of the file that holds the disk."""

    name: str
    command: Callable[[Path, Path], list[str]]
    client: Callable[[Path, Load], "Counted"]
    #: The disk keeps data: it is filled with a pattern first, and what is read is held against it.
    verified: bool = False

    @contextmanager
    def serving(self, folder: Path, image: Path) -> Iterator[tuple[int, Path]]:
        """Runs the server; gives its process number and its socket."""
        socket = folder / "bench.sock"
        socket.unlink(missing_ok=True)
        log = (folder / "server.log").open("w+")
        command = ["taskset", "-c", str(SERVER_CPU), *self.command(socket, image)]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE.parent)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{self.name} did not start: {log.read().strip()}")
                time.sleep(0.01)
            yield server.pid, socket
        finally:
            server.terminate()
            try:
                server.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
            log.close()


@dataclass(frozen=True)
class Counted:
    """What a client counted. Wrong data never gets here: the client fails."""

    ops: int
    iops: float
    p50_us: float
    p99_us: float


def measure(contender: Contender, load: Load, folder: Path, image: Path) -> Result:
    """Serves, loads and reads the server's processor time before and after."""
    with contender.serving(folder, image) as (pid, socket):
        if contender.verified:
            output([*bench(socket), "--prepare", "--runtime", "0.1"])
        contender.client(socket, Load(load.depth, 0.2, load.polling))  # warm caches and branches
        before = cpu_seconds(pid)
        counted = contender.client(socket, load)
        used = cpu_seconds(pid) - before
    cpu_us = used * 1e6 / counted.ops
    return Result(counted.iops, cpu_us, counted.p50_us, counted.p99_us)


def cpu_seconds(pid: int) -> float:
    """Time on the processor of all threads of a process, from its scheduler statistics."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def vhost_client(verify: bool) -> Callable[[Path, Load], Counted]:
    """The package's own load generator, over the built-in front-end."""

    def run(socket: Path, load: Load) -> Counted:
        command = [
            *bench(socket), "--rw", "randread", "--bs", "4k", "--iodepth", str(load.depth),
            "--runtime", str(load.seconds), "--verify", "sampled" if verify else "none",
        ]  # fmt: skip
        if load.polling:
            command.append("--poll")
        report = json.loads(output(command))
        return Counted(report["ops"], report["iops"], report["p50_us"], report["p99_us"])

    return run


def bench(socket: Path) -> list[str]:
    """The start of a command line of the load generator."""
    return ["taskset", "-c", str(CLIENT_CPU), TOOL, "bench", str(socket), "--json"]


def fio_client(socket: Path, load: Load) -> Counted:
    """fio's NBD engine."""
    command = [
        "taskset", "-c", str(CLIENT_CPU),
        "fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}",
        "--rw=randread", "--bs=4k", f"--iodepth={load.depth}", "--time_based",
        f"--runtime={max(1, round(load.seconds))}", "--output-format=json", "--thread",
    ]  # fmt: skip
    report = json.loads(output(command))["jobs"][0]["read"]
    percentile = report["clat_ns"]["percentile"]
    p50, p99 = (percentile[p] / 1e3 for p in ("50.000000", "99.000000"))
    return Counted(report["total_ios"], report["iops"], p50, p99)


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout[done.stdout.index("{") :]


def ours(device: str, *settings: str) -> Callable[[Path, Path], list[str]]:
    return lambda socket, image: [
        TOOL, "run", f"{HERE / 'devices.py'}:{device}",
        f"size={image.stat().st_size}", *settings, "--socket-path", str(socket),
    ]  # fmt: skip


def our_file(socket: Path, image: Path) -> list[str]:
    return [TOOL, "blk", "--socket-path", str(socket), "--blk-file", str(image)]


def our_null(socket: Path, image: Path) -> list[str]:
    size = image.stat().st_size
    return [TOOL, "run", "vhost_user:NullDisk", f"size={size}", "--socket-path", str(socket)]


def qsd(blockdev: str) -> Callable[[Path, Path], list[str]]:
    """qemu-storage-daemon with an I/O thread at its default polling."""
    return lambda socket, image: [
        "qemu-storage-daemon", "--object", "iothread,id=io",
        "--blockdev", blockdev.format(image=image, size=image.stat().st_size),
        "--export", "type=vhost-user-blk,id=e,node-name=disk,writable=on,iothread=io,"
        f"addr.type=unix,addr.path={socket}",
    ]  # fmt: skip


def nbdkit(socket: Path, image: Path) -> list[str]:
    size = image.stat().st_size
    return [
        "nbdkit", "-f", "-U", str(socket), "python", str(HERE / "nbdkit_ramdisk.py"),
        f"size={size}",
    ]  # fmt: skip


CONTENDERS = {
    "null": Contender("null device, Rust", our_null, vhost_client(False)),
    "file": Contender("FileDisk, Rust", our_file, vhost_client(True), True),
    "per-request": Contender(
        "RAM disk, Python per request", ours("PerRequest"), vhost_client(True), True
    ),
    "on_batch": Contender("RAM disk, Python per batch", ours("Batched"), vhost_client(True), True),
    "qsd-null": Contender(
        "qemu-storage-daemon null-co",
        qsd("driver=null-co,node-name=disk,size={size},read-zeroes=off"),
        vhost_client(False),
    ),
    "qsd-file": Contender(
        "qemu-storage-daemon file, threads",
        qsd("driver=file,node-name=disk,filename={image},aio=threads"),
        vhost_client(True),
        True,
    ),
    "qsd-uring": Contender(
        "qemu-storage-daemon file, io_uring",
        qsd("driver=file,node-name=disk,filename={image},aio=io_uring"),
        vhost_client(True),
        True,
    ),
    "nbdkit": Contender("nbdkit Python plugin", nbdkit, fio_client),
}

PROGRAMS = {
    "qemu-storage-daemon": "qemu-utils",
    "nbdkit": "nbdkit nbdkit-plugin-python",
    "fio": "fio",
    "taskset": "util-linux",
}


def missing_packages() -> list[str]:
    """Debian packages that the bench needs and that are not installed."""
    return [package for program, package in PROGRAMS.items() if not shutil.which(program)]
