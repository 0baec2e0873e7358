"""Programs of others at either end of what is held.

QEMU's disk programs go through libblkio, which never dials again: they copy to a disk whose
back-end is killed meanwhile, and notice nothing. qemu-storage-daemon is a back-end that records
nothing.
"""

from __future__ import annotations

import filecmp
import os
import signal
import subprocess
from pathlib import Path

from hold.held import COMMAND, Held, sector

from .rig.machine import environment
from .rig.packages import NEWEST, Packages

RUN_WITH = (NEWEST,)

DISK_BYTES = 32 << 20
RATE = 8 << 20
"""Bytes a second: the copy takes long enough for some kills."""

KILLS = 3


def test_a_copy_through_libblkio_is_whole_though_its_back_end_is_killed(
    packages: Packages, tmp_path: Path
) -> None:
    (tmp_path / "random.img").write_bytes(os.urandom(DISK_BYTES))
    (tmp_path / "disk.img").write_bytes(bytes(DISK_BYTES))
    with Held.around(tmp_path, *COMMAND, "blk", "disk.img", options=["--give-up-after=0"]) as held:
        target = f"driver=virtio-blk-vhost-user,path={held.socket},cache.direct=on"
        words = ["convert", "-n", "-f", "raw", "-r", str(RATE), "random.img"]
        copying = subprocess.Popen(
            [*packages.program("usr/bin/qemu-img"), *words, "--target-image-opts", target],
            cwd=tmp_path,
            env=environment(packages),
        )
        try:
            held.wait_until(lambda: _has_begun(tmp_path), "the first bytes of the copy")
            for _ in range(KILLS):
                held.kill_back_end()
            assert copying.poll() is None, "it was over before the last kill"
            assert copying.wait(60) == 0
        finally:
            copying.kill()
            copying.wait()
        assert held.end() == 0
    assert filecmp.cmp(tmp_path / "random.img", tmp_path / "disk.img", shallow=False)


def test_a_back_end_of_another_project_is_held_as_far_as_it_goes(
    packages: Packages, tmp_path: Path
) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * DISK_BYTES)
    command = [
        *packages.program("usr/bin/qemu-storage-daemon"),
        *("--blockdev", "driver=file,node-name=disk,filename=disk.img"),
        *("--export", "type=vhost-user-blk,id=e,node-name=disk,addr.type=fd,addr.str=3"),
    ]
    with Held.around(tmp_path, *command) as held:
        held.assert_says("does not record requests in flight (INFLIGHT_SHMFD)")
        front = held.connect().start()
        assert sector(front) == b"x" * 512
        os.kill(held.back_end(), signal.SIGKILL)
        assert front.channel.is_closed()
        held.assert_says("the requests that were in flight are not known")
        front = held.connect().start()
        assert sector(front) == b"x" * 512
        front.channel.close()


def _has_begun(folder: Path) -> bool:
    with (folder / "disk.img").open("rb") as image:
        return any(image.read(4096))
