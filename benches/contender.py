"""What is measured: a server process on one core, and the client that loads it from the other."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benches.client import cpu_seconds

SERVER_CPU, CLIENT_CPU = 0, 1
HERE = Path(__file__).resolve().parent
TOOL = str(Path(sys.executable).with_name("vhost-user"))
START_SECONDS = 10.0

#: What a program is called, and the Debian packages that bring it.
PROGRAMS = {
    "qemu-storage-daemon": "qemu-utils",
    "nbdkit": "nbdkit nbdkit-plugin-python",
    "fio": "fio",
    "taskset": "util-linux",
}


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
    polling: bool

    @property
    def name(self) -> str:
        """For tables."""
        return f"QD {self.depth}, driver {'polls' if self.polling else 'sleeps'}"


@dataclass(frozen=True)
class Setting:
    """Where one contender works: a folder of its own, its socket, and the disk's size and file."""

    folder: Path
    size: int

    @property
    def socket(self) -> Path:
        """The server's socket."""
        return self.folder / "bench.sock"

    @property
    def image(self) -> Path:
        """The disk's file, for those that serve one."""
        return self.folder / "disk.img"


@dataclass(frozen=True)
class Contender:
    """A server: its command, how it is loaded, and how large its disk is.

    `verified`: the disk keeps data. It is filled with a pattern and what is read is checked.
    `driver`: what the package's own driver asks of the server, as its options say it.
    """

    name: str
    command: Callable[[Setting], list[str]]
    size: int
    verified: bool = False
    nbd: bool = False
    driver: tuple[str, ...] = ()

    def measure(self, load: Load, folder: Path) -> Result:
        """Serves, loads, and stops again."""
        setting = Setting(folder, self.size)
        with setting.image.open("wb") as image:
            image.truncate(self.size)
        with self.serving(setting) as pid:
            client = fio if self.nbd else vhost_user
            return client(self, setting, load, pid)

    @contextmanager
    def serving(self, setting: Setting) -> Iterator[int]:
        """Runs the server; gives its process number."""
        setting.socket.unlink(missing_ok=True)
        command = ["taskset", "-c", str(SERVER_CPU), *self.command(setting)]
        with (setting.folder / "server.log").open("w+") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE.parent)
            try:
                deadline = time.monotonic() + START_SECONDS
                while not setting.socket.exists():
                    if server.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise SystemExit(f"{self.name} did not start: {log.read().strip()}")
                    time.sleep(0.01)
                yield server.pid
            finally:
                server.terminate()
                try:
                    server.wait(START_SECONDS)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


def vhost_user(contender: Contender, setting: Setting, load: Load, pid: int) -> Result:
    """The package's own load generator."""
    command = [
        *(sys.executable, "-m", "benches.client", str(setting.socket), str(pid)),
        *(str(load.depth), str(load.seconds)),
        *(["--poll"] if load.polling else []),
        *(["--verify"] if contender.verified else []),
        *contender.driver,
    ]
    return Result(**json.loads(output(command)))


def fio(contender: Contender, setting: Setting, load: Load, pid: int) -> Result:
    """The NBD engine of fio; it always polls its socket."""
    before = cpu_seconds(pid)
    command = [
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={setting.socket}"),
        *("--rw=randread", "--bs=4k", f"--iodepth={load.depth}", "--time_based", "--thread"),
        *(f"--runtime={max(1, round(load.seconds))}", "--output-format=json"),
    ]
    report = json.loads(output(command))["jobs"][0]["read"]
    cpu = cpu_seconds(pid) - before
    percentile = report["clat_ns"]["percentile"]
    p50, p99 = (percentile[p] / 1e3 for p in ("50.000000", "99.000000"))
    return Result(report["iops"], cpu * 1e6 / report["total_ios"], p50, p99)


def output(command: list[str]) -> str:
    """What a client printed from its first brace on."""
    command = ["taskset", "-c", str(CLIENT_CPU), *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout[done.stdout.index("{") :]


def ours(target: str, tool: str = TOOL) -> Callable[[Setting], list[str]]:
    """A device class, served by the command line."""
    return lambda setting: [
        *(tool, "run", target, f"size={setting.size}", "--socket-path", str(setting.socket))
    ]


def measured(target: str) -> Callable[[Setting], list[str]]:
    """The same with all that is measured for Prometheus."""
    command = ours(target)
    return lambda setting: [*command(setting), "--metrics", f"unix:{setting.folder / 'metrics'}"]


def our_file(tool: str = TOOL) -> Callable[[Setting], list[str]]:
    """The file device."""
    return lambda setting: [
        *(tool, "blk", "--socket-path", str(setting.socket), "--blk-file", str(setting.image))
    ]


def storage_daemon(node: str) -> Callable[[Setting], list[str]]:
    """qemu-storage-daemon with an I/O thread, at its default polling."""
    export = "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io"
    return lambda setting: [
        *("qemu-storage-daemon", "--object", "iothread,id=io"),
        *("--blockdev", node.format(image=setting.image, size=setting.size) + ",node-name=disk"),
        *("--export", f"{export},addr.type=unix,addr.path={setting.socket}"),
    ]


def nbdkit(setting: Setting) -> list[str]:
    """The RAM disk's body in nbdkit's Python plugin."""
    plugin = str(HERE / "nbdkit_ramdisk.py")
    return ["nbdkit", "-f", "-U", str(setting.socket), "python", plugin, f"size={setting.size}"]


#: A file on tmpfs: far larger than any cache, all in memory.
FILE = 256 << 20
#: The RAM disks that Python serves fit a cache: what is compared is the way into Python, not the
#: way to memory, which would hide it.
RAM = 1 << 20

DEVICES = HERE / "devices.py"

CONTENDERS = {
    "null": Contender("null device, Rust", ours("vhost_user:NullDisk"), FILE),
    "null-packed": Contender(
        "null device, packed ring", ours("vhost_user:NullDisk"), FILE, driver=("--packed",)
    ),
    "null-record": Contender(
        "null device, record kept", ours("vhost_user:NullDisk"), FILE, driver=("--inflight",)
    ),
    "null-packed-record": Contender(
        "null device, packed, record kept",
        ours("vhost_user:NullDisk"),
        FILE,
        driver=("--packed", "--inflight"),
    ),
    "null-log": Contender(
        "null device, dirty log", ours("vhost_user:NullDisk"), FILE, driver=("--dirty-log",)
    ),
    "null-metrics": Contender("null device, metrics on", measured("vhost_user:NullDisk"), FILE),
    "null-iommu": Contender(
        "null device, behind an IOMMU", ours("vhost_user:NullDisk"), FILE, driver=("--iommu",)
    ),
    "qsd-null": Contender(
        "qemu-storage-daemon, null-co",
        storage_daemon("driver=null-co,size={size},read-zeroes=off"),
        FILE,
    ),
    "file": Contender("FileDisk, Rust", our_file(), FILE, verified=True),
    "file-packed": Contender(
        "FileDisk, packed ring", our_file(), FILE, verified=True, driver=("--packed",)
    ),
    "file-log": Contender(
        "FileDisk, dirty log", our_file(), FILE, verified=True, driver=("--dirty-log",)
    ),
    "qsd-threads": Contender(
        "qemu-storage-daemon, file, threads",
        storage_daemon("driver=file,filename={image},aio=threads"),
        FILE,
        verified=True,
    ),
    "qsd-uring": Contender(
        "qemu-storage-daemon, file, io_uring",
        storage_daemon("driver=file,filename={image},aio=io_uring"),
        FILE,
        verified=True,
    ),
    "per-request": Contender(
        "RAM disk, Python per request",
        ours("vhost_user.examples.ramdisk:RamDisk"),
        RAM,
        verified=True,
    ),
    "per-batch": Contender(
        "RAM disk, Python per batch", ours(f"{DEVICES}:Batched"), RAM, verified=True
    ),
    "per-batch-looped": Contender(
        "RAM disk, Python per batch, in a loop", ours(f"{DEVICES}:Looped"), RAM, verified=True
    ),
    "nbdkit": Contender("RAM disk, nbdkit's Python plugin", nbdkit, RAM, nbd=True),
}


def built_before(environment: Path) -> dict[str, Contender]:
    """Another build of the package, installed in an environment of its own: its servers under the
    load generator of this one."""
    tool = str(environment.absolute() / "bin/vhost-user")
    if not Path(tool).exists():
        raise SystemExit(f"--before {environment}: there is no {tool}")
    null, file = ours("vhost_user:NullDisk", tool), our_file(tool)
    return {
        "null-before": Contender("null device, the build before", null, FILE),
        "file-before": Contender("FileDisk, the build before", file, FILE, verified=True),
    }


def missing_packages() -> list[str]:
    """Debian packages that the bench needs and that are not installed."""
    return [package for program, package in PROGRAMS.items() if not shutil.which(program)]
