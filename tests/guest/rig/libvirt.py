"""libvirt's daemon and its command in a world of their own: the unpacked tree is their ``/``.

A mount and a process namespace hold them, so that nothing of the host's libvirt is met or changed
and nothing outlives the test. ``/run`` is the world's own, for back-ends outside the tree too.
"""

from __future__ import annotations

import shlex
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from .packages import Packages

USER = "libvirt-qemu"
USER_NUMBER = 64055
"""The user as whom Debian's libvirt runs QEMU."""

PASSWD = f"""\
root:x:0:0:root:/root:/bin/sh
{USER}:x:{USER_NUMBER}:{USER_NUMBER}:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin
"""
GROUP = f"root:x:0:\n{USER}:x:{USER_NUMBER}:\n"

QEMU_CONFIGURATION = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
"""
"""No confinement, which needs more of a system than is here."""

DAEMON_CONFIGURATION = """\
auth_unix_rw = "none"
host_uuid = "{uuid}"
unix_sock_dir = "{sockets}"
"""

BUILD = """\
set -e
world=$1 tree=$2 shared=$3
hostname "$8"
mount -t tmpfs -o mode=0755 tmpfs "$world"
mkdir "$world/upper" "$world/work" "$world/root" "$world/run" "$world/etc"
mount -t overlay -o "lowerdir=$tree,upperdir=$world/upper,workdir=$world/work" overlay "$world/root"
printf %s "$4" >"$world/etc/passwd"
printf %s "$5" >"$world/etc/group"
for name in passwd group; do
    cp "$world/etc/$name" "$world/root/etc/$name"
    mount --bind "$world/etc/$name" "/etc/$name"
done
mkdir -p "$world/root/mnt" "$world/root/proc" "$world/root/dev" "$world/root/sys" "$world/root/run"
rm -r "$world/root/var/run"
ln -s /run "$world/root/var/run"
printf %s "$6" >"$world/root/etc/libvirt/qemu.conf"
printf %s "$7" >"$world/root/etc/libvirt/libvirtd.conf"
mount --bind "$world/run" /run
mount --bind "$world/run" "$world/root/run"
mount --bind "$shared" "$world/root/mnt"
mount -t proc proc "$world/root/proc"
mount --rbind /sys "$world/root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$world/root/dev"
mkdir "$world/root/dev/pts" "$world/root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$world/root/dev/pts"
ln -s pts/ptmx "$world/root/dev/ptmx"
for name in full null random urandom zero; do
    touch "$world/root/dev/$name"
    mount --bind "/dev/$name" "$world/root/dev/$name"
done
echo built
exec 3<&0
cat <&3 &
wait $!
"""
"""``cat`` ends with the test, and the world with it. The shell is process 1 there and, while it
waits, buries those whose parents have gone, for which libvirt waits. There is no ``/dev/kvm``:
where QEMU's user may not open it, libvirt asks QEMU anew at each step what it can.
"""

LIMIT = 240.0
"""Seconds for a command: a tenth of this where nothing else runs."""


class World:
    """A context manager; ``directory`` and ``shared`` are directories of the test. The second is
    ``/mnt`` in the world, where its programs run. Two worlds with different names are two hosts to
    libvirt. ``PermissionError`` without root's rights.

    ``uri`` names the daemon to ``virsh``, here and in other worlds with the same shared directory.
    """

    def __init__(
        self, packages: Packages, directory: Path, shared: Path, name: str = "host"
    ) -> None:
        self._root = directory / "root"
        sockets = f"/mnt/{name}"
        (shared / name).mkdir()
        self.uri = f"qemu+unix:///system?socket={sockets}/libvirt-sock"
        daemon = DAEMON_CONFIGURATION.format(uuid=uuid.uuid4(), sockets=sockets)
        script = ["sh", "-c", BUILD, "sh", str(directory), str(packages.root), str(shared)]
        script += [PASSWD, GROUP, QEMU_CONFIGURATION, daemon, name]
        space = [
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]
        self._holder = subprocess.Popen(
            [*space, *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "built\n":
            _, errors = self._holder.communicate()
            if "not permitted" in errors or "denied" in errors:
                raise PermissionError(errors)
            raise AssertionError(errors)

    @property
    def entering(self) -> list[str]:
        """The words that run a command of the host's in the world's mounts."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--wd=."]

    def path(self, inside: str) -> Path:
        """Where a file of the world's own ``/run`` is for the host."""
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    def command(self, program: str) -> list[str]:
        """The words that run a program of the tree in the world, from the host."""
        return [*self.entering[:-1], *self._in_processes, *self.within(program)]

    def within(self, program: str) -> list[str]:
        """The same from inside its mounts."""
        environment = ["LC_ALL=C", f"LIBVIRT_DEFAULT_URI={self.uri}"]
        return ["env", *environment, "unshare", f"--root={self._root}", "--wd=/mnt", program]

    @property
    def _in_processes(self) -> Sequence[str]:
        spaces = f"/proc/{self._holder.pid}/ns"
        return [f"--pid={spaces}/pid_for_children", f"--uts={spaces}/uts"]

    def start_daemon(self) -> None:
        """Returns when libvirt answers, and has asked QEMU what it can, which takes a while."""
        self.run("/usr/sbin/libvirtd", "--daemon")
        self.run("/usr/bin/virsh", "domcapabilities", "--virttype", "qemu", "--machine", "q35")

    def run(self, program: str, *words: str) -> str:
        """What a program of the tree prints; ``AssertionError`` if it fails."""
        command = [*self.command(program), *words]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, (
            f"{shlex.join(words)}: {done.stdout}{done.stderr}{self.report()}"
        )
        return done.stdout

    def report(self) -> str:
        """The logs of QEMU's processes."""
        logs = Path(f"/proc/{self._holder.pid}/root{self._root}/var/log/libvirt/qemu").glob("*.log")
        return "\n".join(f"--- {log.name} ---\n{log.read_text()[-4000:]}" for log in logs)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
