#!/usr/bin/env bash
# DPDK 22.11: `port stop` of a virtio-user port tells the vhost-user back-end nothing.
#
# Two testpmd programs are the two ends of a vhost-user connection: net_vhost is the back-end,
# net_virtio_user the front-end. A relay between them passes every message on and writes its name
# down. `port stop 0` and `port start 0` at the front-end end and begin the port's work, yet
# no message stops, restarts, disables or enables a ring. The back-end's link stays up, and a burst
# that it sends to the stopped port counts as sent; the start then throws that burst away.
#
# Exit: 0 as stated, 1 changed, 77 the packages cannot be had.
set -euo pipefail

version=22.11.11-0+deb12u1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unavailable() {
    echo "unavailable: $*"
    exit 77
}

# A private apt that believes nothing is installed: it names the C library too.
apt_config() {
    mkdir -p "$work"/apt/{lists,archives}/partial "$work/root"
    : >"$work/apt/status"
    cat >"$work/apt/conf" <<END
Dir::State::lists "$work/apt/lists";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
APT::Sandbox::User "$(id -un)";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
END
    export APT_CONFIG="$work/apt/conf" LC_ALL=C
}

fetch() {
    local program="$work/apt/program"
    mkdir "$program"
    apt-get -qq update || unavailable "apt reaches no archive"
    (cd "$program" && apt-get -qq download "dpdk-dev=$version") || unavailable "dpdk-dev $version"
    # All that the package depends on but its headers and its Python scripts' needs.
    local libraries
    libraries=$(dpkg-deb --field "$program"/*.deb Depends | tr ',' '\n' |
        awk '$1 != "libdpdk-dev" && $1 != "python3" { print $1 }')
    # shellcheck disable=SC2086
    apt-get -qq --yes --download-only install $libraries \
        "librte-net-virtio23=$version" "librte-net-vhost23=$version" >/dev/null ||
        unavailable "libraries of DPDK $version"
    local package
    for package in "$program"/*.deb "$work"/apt/archives/*.deb; do
        dpkg-deb --extract "$package" "$work/root"
    done
}

for tool in apt-get dpkg-deb python3; do
    command -v "$tool" >/dev/null || unavailable "$tool"
done
[ "$(uname -m)" = x86_64 ] || unavailable "an x86-64 machine"
apt_config
fetch
echo "dpdk-dev $version"

python3 - "$work" <<'END'
import atexit, os, pty, re, select, socket, struct, subprocess, sys, threading, time
from pathlib import Path

work = Path(sys.argv[1])
libraries = work / "root/usr/lib/x86_64-linux-gnu"
(drivers,) = libraries.glob("dpdk/pmds-*")
system = work / "root/lib/x86_64-linux-gnu"
PROMPT = "testpmd> "
BURST = 32
LATER_BYTES = 128
"""The first burst's packets have 64 bytes, so that the bursts differ."""


class Testpmd:
    def __init__(self, name, driver, device, *options):
        loaded = (f"{driver}.so.23", "librte_mempool_ring.so.23")
        self.name = name
        self.terminal, other = pty.openpty()
        self.process = subprocess.Popen(
            [
                system / "ld-linux-x86-64.so.2",
                *("--library-path", f"{system}:{libraries}:{drivers}"),
                *("--preload", " ".join(loaded), work / "root/usr/bin/dpdk-testpmd"),
                *("--no-huge", "--no-shconf", "-m", "128", "--no-pci", "--no-telemetry"),
                *("--lcores", "(0-1)@0", "--vdev", device),
                *("--", "--interactive", "--total-num-mbufs=2048", *options),
            ],
            stdin=other, stdout=other, stderr=other, start_new_session=True,
        )
        atexit.register(self.process.kill)
        os.close(other)
        self.answer("starting")

    def answer(self, step):
        text, end = "", time.monotonic() + 60
        while not text.endswith(PROMPT):
            if not select.select([self.terminal], [], [], max(end - time.monotonic(), 0))[0]:
                sys.exit(f"{self.name}: no answer to {step}: {text}")
            try:
                text += os.read(self.terminal, 1 << 16).decode().replace("\r", "")
            except OSError:
                sys.exit(f"{self.name} ended in {step}: {text}")
        return text

    def do(self, words):
        os.write(self.terminal, words.encode() + b"\n")
        return self.answer(words)

    def wait(self, words, wanted):
        end = time.monotonic() + 30
        while not re.search(wanted, shown := self.do(words)):
            if time.monotonic() > end:
                return shown
        return shown

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


NAMES = dict(enumerate((
    "GET_FEATURES SET_FEATURES SET_OWNER RESET_OWNER SET_MEM_TABLE SET_LOG_BASE SET_LOG_FD "
    "SET_VRING_NUM SET_VRING_ADDR SET_VRING_BASE GET_VRING_BASE SET_VRING_KICK SET_VRING_CALL "
    "SET_VRING_ERR GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_VRING_ENABLE"
).split(), 1))
NAMES |= {39: "SET_STATUS", 40: "GET_STATUS"}
"""Requests of the vhost-user protocol by their numbers; others are shown as numbers."""


class Relay:
    """Accepts the front-end at ``path``, connects it to the back-end at ``back``."""

    def __init__(self, path, back):
        self.requests = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.back = str(back)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        front, _ = self.listener.accept()
        back = socket.socket(socket.AF_UNIX)
        back.connect(self.back)
        other = {front: back, back: front}
        while True:
            for source in select.select(list(other), [], [])[0]:
                # One message at a time: the descriptors have to arrive with its first byte.
                header, fds, _, _ = socket.recv_fds(source, 12, 64)
                if not header:
                    return
                request, _, size = struct.unpack("<III", header)
                payload = source.recv(size, socket.MSG_WAITALL) if size else b""
                if source is front:
                    self.requests.append(NAMES.get(request, str(request)))
                socket.send_fds(other[source], [header + payload], fds)
                for fd in fds:
                    os.close(fd)


there, here = work / "back-end", work / "front-end"
back = Testpmd("back-end", "librte_net_vhost", f"net_vhost0,iface={there}", "--no-flush-rx")
relay = Relay(here, there)
front = Testpmd("front-end", "librte_net_virtio", f"net_virtio_user0,path={here}", "--no-flush-rx")
back.wait("show port info 0", "Link status: up")
begun = list(relay.requests)
print("until the port is started:", len(begun), "messages, the last is", begun[-1])

front.do("port stop 0")
link = re.search(r"Link status: (\w+)", back.do("show port info 0"))[1]
back.do("set fwd rxonly")
back.do("start tx_first 1")
while_stopped = back.do("stop")
front.do("port start 0")
again = relay.requests[len(begun):]
front.do("set fwd rxonly")
front.do("start")
back.do(f"set txpkts {LATER_BYTES}")
back.do("start tx_first 1")
back.do("stop")
shown = front.wait("show port stats 0", rf"RX-packets: *{BURST}\b")
front.close()
back.close()


def number(text, name):
    return int(re.search(rf"\b{name}: *(\d+)", text)[1])


print("port stop 0, port start 0:", again)
print("back-end's link to the stopped port:", link)
sent = number(while_stopped, "TX-packets"), number(while_stopped, "TX-dropped")
print("sent to the stopped port, and dropped by the back-end:", sent)
received = number(shown, "RX-packets"), number(shown, "RX-bytes")
print(f"received after {BURST} more of {LATER_BYTES} bytes: {received} packets and bytes")
stated = (
    begun
    and not again
    and link == "up"
    and sent == (BURST, 0)
    and received == (BURST, BURST * LATER_BYTES)
)
print("as stated" if stated else "changed")
sys.exit(not stated)
END
