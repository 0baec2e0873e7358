"""The guest's root file system: busybox, the virtio drivers, the ext4 tools, a ping that looks at
the data, and a program that verifies a disk.

Linux unpacks it into memory; ``init.sh`` is process 1.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from rig.cpio import Cpio
from rig.unpack import unpacked

from . import verifier
from .digest import digest
from .packages import Packages

MODULES = ("virtio_pci", "virtio_blk", "virtio_rng", "virtio_console", "virtio_net", "ext4")
"""Loaded by the guest before it is ready; left out where the kernel has them built in."""

TOOLS = ("sbin/mke2fs", "sbin/resize2fs", "sbin/e2fsck", "bin/ping")
"""Instead of those of busybox."""

LOADER = "lib64/ld-linux-x86-64.so.2"
"""Where every program looks for it."""

INIT = Path(__file__).with_name("init.sh")

KEPT_SECONDS = 86400.0
"""How long an archive stays that was made by another recipe."""


def build(packages: Packages) -> Path:
    """The archive for ``packages``, beside their tree. Its name tells the recipe, so that those of
    several checkouts can be in one cache; old ones go when a new one comes.
    """
    directory = packages.root.parent
    recipe = [*sorted(Path(__file__).parent.glob("*.py")), INIT, directory / "manifest.json"]
    image = directory / f"initramfs-{digest(*recipe, verifier.SOURCE)}.cpio"
    if image.exists():
        return image
    archive = Cpio()
    _add_base(archive, packages)
    _add_modules(archive, packages)
    _add_tools(archive, packages)
    partial = image.with_suffix(f".{os.getpid()}")
    partial.write_bytes(archive.finish())
    os.replace(partial, image)
    for other in directory.glob("initramfs*.cpio"):
        if other.stat().st_mtime < time.time() - KEPT_SECONDS:
            other.unlink(missing_ok=True)
    return image


def _add_base(archive: Cpio, packages: Packages) -> None:
    for path in ("proc", "sys", "dev", "tmp", "mnt", "sbin", "usr/bin", "usr/sbin", "etc"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", INIT.read_bytes(), mode=0o755)
    archive.file("bin/busybox", (packages.root / "bin/busybox").read_bytes(), mode=0o755)


def _add_modules(archive: Cpio, packages: Packages) -> None:
    release = packages.kernel_release
    dependencies = _dependencies(packages)
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in dependencies}
    modules = [name for name in MODULES if name in by_name]
    archive.file("etc/modules", "\n".join(modules).encode())
    wanted = {by_name[name] for name in modules}
    wanted |= {needed for path in wanted for needed in dependencies[path]}
    directory = f"lib/modules/{release}"
    for path in sorted(wanted):
        module = unpacked((packages.module_directory / path).read_bytes())
        archive.file(f"{directory}/{_plain(path)}", module)
    lines = (" ".join([path + ":", *dependencies[path]]) for path in sorted(wanted))
    archive.file(f"{directory}/modules.dep", _plain("\n".join(lines)).encode())


def _plain(text: str) -> str:
    """Module paths as they are in the archive, where no module is compressed."""
    return text.replace(".ko.xz", ".ko")


def _dependencies(packages: Packages) -> dict[str, list[str]]:
    """``modules.dep``: for each module the modules that must be loaded before it."""
    base = packages.module_directory.parents[2]
    depmod = [str(packages.root / "bin/busybox"), "depmod", "-b", str(base)]
    subprocess.run([*depmod, packages.kernel_release], check=True)
    lines = (packages.module_directory / "modules.dep").read_text().splitlines()
    return {path: needed.split() for path, _, needed in (line.partition(":") for line in lines)}


def _add_tools(archive: Cpio, packages: Packages) -> None:
    libraries: set[Path] = set()
    for program in TOOLS:
        archive.file(program, (packages.root / program).read_bytes(), mode=0o755)
        libraries.update(packages.libraries(program))
    archive.file("bin/verifier", verifier.build().read_bytes(), mode=0o755)
    archive.link("sbin/mkfs.ext4", "mke2fs")
    archive.file("etc/mke2fs.conf", (packages.root / "etc/mke2fs.conf").read_bytes())
    archive.link("etc/mtab", "/proc/mounts")
    archive.file(LOADER, packages.loader.read_bytes(), mode=0o755)
    for library in sorted(libraries):
        archive.file(f"lib/x86_64-linux-gnu/{library.name}", library.read_bytes(), mode=0o755)
