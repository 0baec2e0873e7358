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

source "$(dirname "${BASH_SOURCE[0]}")/lib/dpdk.sh"
install_dpdk 22.11.11-0+deb12u1

python3 - "$work" <<'END'
import sys
from pathlib import Path

from testpmd import Testpmd, number

work = Path(sys.argv[1])
BURST = 32


def received(*options):
    """What the front-end's `stop` says after a burst that came before its `start`."""
    socket = work / "socket"
    socket.unlink(missing_ok=True)
    back = Testpmd(work, "back-end", "librte_net_vhost", f"net_vhost0,iface={socket}", *options)
    device = f"net_virtio_user0,path={socket}"
    front = Testpmd(work, "front-end", "librte_net_virtio", device, *options)
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
