#!/usr/bin/env bash
# DPDK 22.11: testpmd throws away every packet that a vhost-user back-end delivered before `start`.
#
# Two testpmd programs are the two ends of one vhost-user socket: net_vhost is the back-end,
# net_virtio_user the front-end. The back-end sends a burst of 32 packets; only then is the front-end
# told to `start` receiving. By default it counts none of them and reports no drop; with
# --no-flush-rx, on the same traffic, it counts all 32.
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
import atexit, os, pty, re, select, subprocess, sys, time
from pathlib import Path

work = Path(sys.argv[1])
libraries = work / "root/usr/lib/x86_64-linux-gnu"
(drivers,) = libraries.glob("dpdk/pmds-*")
system = work / "root/lib/x86_64-linux-gnu"
PROMPT = "testpmd> "
BURST = 32


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


def received(*options):
    """What the front-end's `stop` says after a burst that came before its `start`."""
    socket = work / "socket"
    socket.unlink(missing_ok=True)
    back = Testpmd("back-end", "librte_net_vhost", f"net_vhost0,iface={socket}", *options)
    front = Testpmd("front-end", "librte_net_virtio", f"net_virtio_user0,path={socket}", *options)
    back.wait("show port info 0", "Link status: up")
    back.do("set fwd rxonly")
    back.do("start tx_first 1")
    sent = back.do("show port stats 0")
    front.do("set fwd rxonly")
    front.do("start")
    # Whatever is received, by the flush or by the forwarding, is in the port's statistics.
    port = front.wait("show port stats 0", rf"RX-packets: {BURST}\b")
    said = front.do("stop")
    front.close()
    back.close()
    def number(text, name):
        return int(re.search(rf"\b{name}: *(\d+)", text)[1])

    return {
        "sent": number(sent, "TX-packets"),
        "taken from the ring": number(port, "RX-packets"),
        "counted as forwarded": number(said, "RX-packets"),
        "counted as dropped": number(said, "RX-dropped"),
    }


default, kept = received(), received("--no-flush-rx")
print("default:       ", default)
print("--no-flush-rx: ", kept)
names = ("sent", "taken from the ring", "counted as forwarded", "counted as dropped")
stated = (
    list(default[name] for name in names) == [BURST, BURST, 0, 0]
    and list(kept[name] for name in names) == [BURST, BURST, BURST, 0]
)
print("as stated" if stated else "changed")
sys.exit(not stated)
END
