"""dom0's root file system, which Linux unpacks into memory.

The base has busybox, CPython and its libraries, ``libxenctrl``, the Xen drivers and pytest; it is
kept. The overlay has the tests, and the package when there is a wheel of it; it is made for each
run and appended, as Linux unpacks joined archives in turn and Xen hands dom0 one only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from rig.cpio import Cpio
from rig.unpack import unpacked

from .packages import Packages, Release, programs

TESTS = Path(__file__).resolve().parents[2]
INIT = Path(__file__).with_name("init.sh")
MODULES = {
    "xen/xen-gntdev": "",
    "xen/xen-gntalloc": "",
    "xen/xen-privcmd": "",
    "xen/xen-evtchn": "",
    "block/brd": "rd_nr=1 rd_size=1024",
}
"""Drivers that dom0 loads, and their parameters: Xen's, and a disk in memory of 1 MiB that takes
direct I/O, which dom0's file system does not."""

DISTRIBUTIONS = ("pytest", "pluggy", "iniconfig", "packaging", "Pygments")
"""pytest and what it needs, all without compiled parts, so that they run on any architecture."""

SHARED = ("peer", "xen/dom0")
"""What of the tests goes into dom0."""

FOLDERS = ("lib", "lib64", "usr/lib", "usr/lib64")
BUSYBOX = ("bin/busybox", "usr/bin/busybox")
JOINED = ("lib", "lib64")
"""Folders that newer releases have below ``/usr`` alone, with a link in the old place."""

LEFT_OUT = frozenset(
    [
        *("modules", "systemd", "gconv", "krb5", "engines-3", "ossl-modules", "binfmt.d", "mime"),
        *("xen-4.17", "xen-4.20", "test", "lib2to3", "distutils", "idlelib", "ensurepip"),
        *("pydoc_data", "sysimage", "tmpfiles.d"),
    ]
)
"""Folders that no test needs: each megabyte is unpacked under emulation."""

BLOCK = 512


def build(packages: Packages, directory: Path, run: str, wheel: Path | None) -> Path:
    """The archive for one run, in ``directory``; ``run`` is the shell script that dom0 runs."""
    overlay = Cpio()
    with tempfile.TemporaryDirectory(dir=directory) as name:
        stage = Path(name)
        for part in SHARED:
            shutil.copytree(TESTS / part, stage / "tests" / part, ignore=_no_caches)
        (stage / "tests/xen/__init__.py").touch()
        if wheel is not None:
            zipfile.ZipFile(wheel).extractall(stage / "site")
        compile_ahead(packages.release, stage, "/opt")
        add_folder(overlay, stage, "opt")
    overlay.file("opt/run", run.encode())
    image = directory / "initramfs.cpio"
    image.write_bytes(_padded(_base(packages).read_bytes()) + overlay.finish())
    return image


def _base(packages: Packages) -> Path:
    """The part that depends on the packages alone; made again when its recipe is newer."""
    image = packages.directory / "base.cpio"
    recipe = [*Path(__file__).parent.iterdir(), *packages.manifests]
    if image.exists() and all(image.stat().st_mtime > path.stat().st_mtime for path in recipe):
        return image
    archive = Cpio()
    for path in ("proc", "sys", "dev", "tmp", "bin", "sbin", "usr/sbin", "results"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", INIT.read_bytes(), mode=0o755)
    _add_programs(archive, packages)
    _add_modules(archive, packages)
    _add_pytest(archive, packages)
    partial = image.with_suffix(f".{os.getpid()}")
    partial.write_bytes(archive.finish())
    os.replace(partial, image)
    return image


def _add_programs(archive: Cpio, packages: Packages) -> None:
    root = packages.programs.root
    python = f"python{packages.release.python}"
    busybox = next(path for path in map(root.joinpath, BUSYBOX) if path.exists())
    archive.file("bin/busybox", busybox.read_bytes(), mode=0o755)
    archive.link("usr/bin/python3", python)
    compile_ahead(packages.release, root / f"usr/lib/{python}", f"/usr/lib/{python}")
    for name in (*FOLDERS, f"usr/bin/{python}", f"etc/{python}"):
        if (root / name).exists():
            add_folder(archive, root / name, name)
        elif name in JOINED and (root / "usr" / name).exists():
            archive.link(name, f"usr/{name}")


def _add_modules(archive: Cpio, packages: Packages) -> None:
    names = {path: path.rpartition("/")[2] for path in MODULES}
    lines = [f"{names[path]} {parameters}\n" for path, parameters in MODULES.items()]
    archive.file("etc/modules", "".join(lines).encode())
    for path, name in names.items():
        [module] = packages.module_directory.glob(f"drivers/{path}.ko*")
        archive.file(f"modules/{name}.ko", unpacked(module.read_bytes()))


def _add_pytest(archive: Cpio, packages: Packages) -> None:
    with tempfile.TemporaryDirectory(dir=packages.directory) as stage:
        for name in DISTRIBUTIONS:
            for path in distribution(name).files or ():
                if ".." not in path.parts and path.suffix != ".pyc":
                    target = Path(stage, path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_binary())
        compile_ahead(packages.release, Path(stage), "/usr/lib/python3/dist-packages")
        add_folder(archive, Path(stage), "usr/lib/python3/dist-packages")


def compile_ahead(release: Release, directory: Path, place: str) -> None:
    """Byte-compile ``directory``, which will be at ``place``, with dom0's version of CPython.

    Without this dom0 would compile each module that it imports, under emulation.
    """
    tree = programs(release, "amd64")
    python = tree.program(f"usr/bin/python{release.python}")
    flags = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(directory), "-p", place]
    subprocess.run(
        [*python, "-m", "compileall", *flags, str(directory)],
        env=dict(os.environ, PYTHONHOME=str(tree.root / "usr")),
        check=True,
    )


def add_folder(archive: Cpio, source: Path, place: str) -> None:
    """Add the file ``source``, or the folder with all in it, at ``place``."""
    if source.is_symlink():
        archive.link(place, os.readlink(source))
    elif source.is_dir():
        archive.directory(place)
        for entry in sorted(source.iterdir()):
            if entry.name not in LEFT_OUT or entry.is_file():
                add_folder(archive, entry, f"{place}/{entry.name}")
    else:
        archive.file(place, source.read_bytes(), mode=source.stat().st_mode & 0o777)


def _no_caches(_: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)
