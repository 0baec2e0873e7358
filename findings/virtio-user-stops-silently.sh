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

source "$(dirname "${BASH_SOURCE[0]}")/lib/dpdk.sh"
install_dpdk 22.11.11-0+deb12u1

python3 - "$work" <<'END'
import os, re, select, socket, struct, sys, threading
from pathlib import Path

from testpmd import Testpmd, number

work = Path(sys.argv[1])
BURST = 32
LATER_BYTES = 128
"""The first burst's packets have 64 bytes, so that the bursts differ."""

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
options = ("--no-flush-rx",)
back = Testpmd(work, "back-end", "librte_net_vhost", f"net_vhost0,iface={there}", *options)
relay = Relay(here, there)
device = f"net_virtio_user0,path={here}"
front = Testpmd(work, "front-end", "librte_net_virtio", device, *options)
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
