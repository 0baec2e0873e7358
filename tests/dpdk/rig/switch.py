"""Open vSwitch with one bridge between a network device and a file of packets.

The bridge is of the kind that OVS tests itself with: it has its own switching, and makes no network
interface on the host, so that it needs no root.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Self

from rig.deadline import Deadline

from . import pcap
from .packages import MEMORY, Packages

BRIDGE = "br0"
DEVICE, FILE = 1, 2
"""The numbers of its ports."""

SECONDS = 30
"""For each step; all together take about a second on an idle machine with two cores."""

# With no device named OVS excludes buses of DPDK by name, and fails for those that are not loaded.
NO_OTHER_DEVICE = ("-a", "0000:00:00.0")


class SwitchError(Exception):
    """A program of Open vSwitch ended or did not do what it was told."""


class Switch:
    """A context manager: the bridge, with the device at ``socket`` as a port, until it is closed.

    What the device sends goes into a file. ``directory`` takes that, the sockets and the logs: its
    path has to be short.
    """

    def __init__(self, packages: Packages, directory: Path, socket: Path) -> None:
        self._packages = packages
        self._directory = directory
        self._file = directory / "received.pcap"
        self._socket = socket
        self._running: list[subprocess.Popen[bytes]] = []

    def send(self, packet: bytes) -> None:
        """Has the bridge send ``packet`` to the device."""
        words = f"in_port=LOCAL packet={packet.hex()} actions=output:{DEVICE}"
        self._run("usr/bin/ovs-ofctl", "packet-out", self._management, words)

    def wait_received(self, count: int) -> None:
        """Waits until ``count`` packets of the device have gone into the file."""
        deadline = Deadline(SECONDS)
        while (received := self._received()) < count:
            if not deadline.left():
                raise self._failure(f"{received} packets of {count} came")

    def close(self) -> list[bytes]:
        """Takes the bridge away, in order; returns the packets of the device."""
        self._vsctl("del-br", BRIDGE)
        if "Failed to stop device" in self._logs():
            raise self._failure("the device did not let the switch go")
        return pcap.read(self._file)

    def __enter__(self) -> Self:
        try:
            self._start_database()
            self._start_switch()
            self._make_bridge()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def _management(self) -> str:
        return f"unix:{self._directory / BRIDGE}.mgmt"

    @property
    def _database(self) -> str:
        return f"unix:{self._directory}/database"

    def _start_database(self) -> None:
        file, schema = self._directory / "conf.db", "usr/share/openvswitch/vswitch.ovsschema"
        self._run("usr/bin/ovsdb-tool", "create", str(file), str(self._packages.root / schema))
        program = self._packages.program("usr/sbin/ovsdb-server")
        self._start(*program, str(file), f"--remote=p{self._database}")
        self._vsctl("--retry", "--no-wait", "init")

    def _start_switch(self) -> None:
        options = {
            "dpdk-init": "true",
            "dpdk-extra": f'"{" ".join((*MEMORY, *NO_OTHER_DEVICE))}"',
            # With one pool of buffers for all ports, a back-end among them asks for 700 MiB.
            "per-port-memory": "true",
            "pmd-cpu-mask": f"{1 << max(os.sched_getaffinity(0)):#x}",
        }
        settings = [f"other_config:{name}={value}" for name, value in options.items()]
        self._vsctl("--no-wait", "set", "Open_vSwitch", ".", *settings)
        program = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
        without_kernel = ("--enable-dummy", "--disable-system", "--disable-system-route")
        self._start(*self._packages.driver(program), self._database, *without_kernel)

    def _make_bridge(self) -> None:
        device = f"net_virtio_user0,path={self._socket}"
        file = f"net_pcap0,tx_pcap={self._file}"
        words = []
        for number, name, arguments in ((DEVICE, "device", device), (FILE, "file", file)):
            words += ["--", "add-port", BRIDGE, name, "--", "set", "interface", name, "type=dpdk"]
            words += [f"ofport_request={number}", f'options:dpdk-devargs="{arguments}"']
        self._add_ports(words)
        flow = f"in_port={DEVICE},actions=output:{FILE}"
        self._run("usr/bin/ovs-ofctl", "add-flow", self._management, flow)

    def _add_ports(self, words: list[str]) -> None:
        """Adds the bridge and what ``words`` say of its ports."""
        bridge = ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=dummy"]
        self._vsctl(*bridge, *words)
        errors = self._vsctl("--bare", "--columns=error", "list", "interface").strip()
        if errors:
            raise self._failure(errors)

    def _received(self) -> int:
        shown = self._run("usr/bin/ovs-ofctl", "dump-ports", self._management, str(FILE))
        found = re.search(r"tx pkts=(\d+)", shown)
        if found is None:
            raise self._failure(f"no count of packets in: {shown}")
        return int(found[1])

    def _vsctl(self, *words: str) -> str:
        return self._run(
            "usr/bin/ovs-vsctl", f"--timeout={SECONDS}", f"--db={self._database}", *words
        )

    def _start(self, *command: str) -> None:
        name = f"{len(self._running)}.log"
        control = f"--unixctl={self._directory}/control-{len(self._running)}"
        with open(self._directory / name, "wb") as log:
            process = subprocess.Popen(
                [*command, control], env=self._environment, stdout=log, stderr=log
            )
        self._running.append(process)

    def _run(self, program: str, *words: str) -> str:
        command = [*self._packages.program(program), *words]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise self._failure(f"{program} {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    @property
    def _environment(self) -> dict[str, str]:
        places = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        return dict(os.environ, **dict.fromkeys(places, str(self._directory)))

    def _failure(self, words: str) -> SwitchError:
        return SwitchError(f"{words}\n{self._logs()}")

    def _logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._directory.glob("*.log")))

    def _end(self) -> None:
        while self._running:
            with self._running.pop() as process:
                process.terminate()
                process.wait(SECONDS)


class Mirror(Switch):
    """A bridge whose one port is a vhost-user back-end, DPDK's: it connects to ``socket`` again and
    again, and what a driver there sends, it gets back."""

    def _make_bridge(self) -> None:
        words = ["--", "add-port", BRIDGE, "device", "--", "set", "interface", "device"]
        words += ["type=dpdkvhostuserclient", f"options:vhost-server-path={self._socket}"]
        self._add_ports([*words, f"ofport_request={DEVICE}"])
        flow = f"in_port={DEVICE},actions=in_port"
        self._run("usr/bin/ovs-ofctl", "add-flow", self._management, flow)
