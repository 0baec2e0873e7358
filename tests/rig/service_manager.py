"""systemd as process 1 of a world of its own, so that units are started by what starts them.

The world has the host's files, which it cannot change, and accounts and units of its own. Nothing
outlives the test, and the host's systemd, if one runs, is not met.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

SYSTEMD = Path("/usr/lib/systemd/systemd")

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
vhost:x:64000:64000:vhost-user:/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = "root:x:0:\nkvm:x:64001:\nvhost:x:64000:\nnogroup:x:65534:\n"

UNITS = "/run/systemd/system"
"""The only directory of units. The host's own would empty `/tmp`, and start what a host needs."""

BUILD = """\
set -e
world=$1 package=$2 python=$3
mount -t tmpfs -o mode=0755 tmpfs "$world"
mkdir "$world/srv" "$world/upper" "$world/work" "$world/python" "$world/package"
mount --bind "$python" "$world/python"
mount --bind "$package" "$world/package"
printf %s "$4" >"$world/passwd"
printf %s "$5" >"$world/group"
printf %s "$6" >"$world/vhost-user"
chown 64000:64000 "$world/srv"
mount --bind "$world/passwd" /etc/passwd
mount --bind "$world/group" /etc/group
mount -t overlay -o "lowerdir=/usr/bin,upperdir=$world/upper,workdir=$world/work" overlay /usr/bin
cp "$world/vhost-user" /usr/bin/vhost-user
chmod 0755 /usr/bin/vhost-user
mount --rbind "$world" /opt
mount --bind "$world/srv" /srv
for place in /dev /sys /proc/sys; do
    mount --bind "$place" "$place"
    mount -o remount,bind,ro "$place"
done
mount -t tmpfs -o mode=0755 tmpfs /usr/lib/systemd/system-generators
mount -t cgroup2 none /sys/fs/cgroup
mount -o remount,bind,ro /
for place in /run /var /tmp; do
    mount -t tmpfs -o mode=0755 tmpfs "$place"
done
mkdir -p /run/lock /run/systemd/system /var/tmp /var/lib /var/log
chmod 1777 /tmp /var/tmp
for target in world sysinit basic shutdown sockets multi-user; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >/run/systemd/system/$target.target
done
export container=test SYSTEMD_UNIT_PATH=/run/systemd/system
exec /usr/lib/systemd/systemd --system --unit=world.target --show-status=no
"""
"""Everything of the host is read-only there, or has something else over it."""

COMMAND = """\
#!/opt/python/bin/python3 -P
import os
import sys

sys.path.insert(0, "/opt/package")
os.environ["PYTHONPATH"] = "/opt/package"  # For the back-end that a keeper starts.
from vhost_user.cli import main

sys.exit(main())
"""

LIMIT = 60.0


def _control_group() -> Path:
    """A new control group, which is the root of all that the world has."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    place = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    if place is None:
        raise PermissionError("there is no cgroup2 file system")
    return Path(tempfile.mkdtemp(prefix="vhost-user-test-", dir=place))


class ServiceManager:
    """A context manager. ``directory`` is one of the test. ``PermissionError`` where the host does
    not allow such a world.

    The package is installed there as `/usr/bin/vhost-user`, with the interpreter of the test. There
    are a user `vhost` and a group `kvm`; `/srv` is empty, and the user's.
    """

    def __init__(self, directory: Path) -> None:
        import vhost_user

        package = Path(vhost_user.__file__).parents[1]
        self._group = _control_group()
        spaces = ["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--mount-proc"]
        script = ["sh", "-c", BUILD, "sh", str(directory), str(package), sys.base_prefix]
        self._log = directory.with_suffix(".log")
        with self._log.open("wb") as log:
            self._holder = subprocess.Popen(
                [
                    *("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._group / "cgroup.procs")),
                    # It ends with the test, however that ends.
                    *("setpriv", "--pdeathsig=KILL"),
                    *("unshare", *spaces, "--fork", "--kill-child"),
                    *(*script, PASSWD, GROUP, COMMAND),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Waits until it takes commands, and has nothing of the host's to do."""
        end = time.monotonic() + LIMIT
        while self._systemctl("is-system-running").stdout.strip() not in ("running", "degraded"):
            said = self._log.read_text()
            if self._holder.poll() is not None and ("not permitted" in said or "denied" in said):
                raise PermissionError(said)
            assert self._holder.poll() is None, said
            assert time.monotonic() < end, f"systemd does not start: {said}"
            time.sleep(0.05)
        assert "systemd-" not in self.systemctl("list-units", "--all", "--type=service")

    @property
    def _process(self) -> int | None:
        """Its process, as the host numbers it."""
        task = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        children = task.read_text().split() if task.exists() else []
        return int(children[0]) if children else None

    def _systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        spaces = ["--mount", "--pid", "--cgroup", "--uts", "--ipc"]
        enter = ["nsenter", f"--target={self._process or self._holder.pid}", *spaces]
        return subprocess.run(
            [*enter, "systemctl", "--no-pager", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def systemctl(self, *words: str) -> str:
        """What it prints; ``AssertionError`` if it fails."""
        done = self._systemctl(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self._status(words)}"
        return done.stdout

    def _status(self, words: tuple[str, ...]) -> str:
        return self._systemctl("status", words[-1]).stdout if words[1:] else ""

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def path(self, inside: str) -> Path:
        """Where a file of the world is for the host."""
        return Path(f"/proc/{self._process}/root{inside}")

    def host_pid(self, inside: int) -> int:
        """The number that the host has for a process of the world."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                same = os.readlink(status.with_name("ns") / "pid") == os.readlink(
                    f"/proc/{self._process}/ns/pid"
                )
            except (OSError, ValueError):
                continue
            if same and int(lines["NSpid"].split()[-1]) == inside:
                return int(lines["Pid"])
        raise AssertionError(f"there is no process {inside}")

    def close(self) -> None:
        """Ends everything in the world."""
        self._holder.kill()
        self._holder.wait()
        end = time.monotonic() + LIMIT
        while (self._group / "cgroup.events").read_text().startswith("populated 1"):
            assert time.monotonic() < end, "a process of the world does not end"
            time.sleep(0.02)
        for folder, _, _ in os.walk(self._group, topdown=False):
            os.rmdir(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
