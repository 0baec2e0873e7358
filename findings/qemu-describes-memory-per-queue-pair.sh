#!/usr/bin/env bash
# QEMU 7.2: a network device with N queue pairs sends every ADD_MEM_REG N times.
#
# Memory belongs to a vhost-user connection and not to a queue, and QEMU sends SET_OWNER once however
# many queue pairs share the connection. With CONFIGURE_MEM_SLOTS negotiated it yet describes each
# region once for every pair: the same addresses and the same file, with no REM_MEM_REG between. A
# Linux guest with two pairs starts the device; a small listener in Python is the back-end and counts.
#
# Exit: 0 as stated, 1 changed, 77 the packages cannot be had.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3
kernel=6.1.0-57-cloud-amd64
kernel_version=6.1.192-3

source "$(dirname "${BASH_SOURCE[0]}")/lib/debian.sh"
read_lists
fetch_alone "linux-image-$kernel=$kernel_version" busybox-static
fetch "qemu-system-x86=$version"
unpack
echo "qemu-system-x86 $version, Linux $kernel_version"

python3 - "$work" "$kernel" <<'END'
import collections, os, socket, struct, subprocess, sys, threading, time
from pathlib import Path

work, kernel = Path(sys.argv[1]), sys.argv[2]
root = work / "root"
PAIRS = 2
MODULES = (
    *("virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_legacy_dev"),
    *("virtio/virtio_pci_modern_dev", "virtio/virtio_pci"),
    *("../net/core/failover", "net/net_failover", "net/virtio_net"),
)
INIT = """#!/busybox sh
for number in 0 1 2 3 4 5 6 7; do /busybox insmod /$number.ko; done
echo the device has started
/busybox sleep 1000
"""
STARTED = b"the device has started"

GET_FEATURES, SET_OWNER, GET_VRING_BASE = 1, 3, 11
GET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 17
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 36, 37, 38
NEED_REPLY = 1 << 3
ANSWERS = {
    GET_FEATURES: 1 << 32 | 1 << 30 | 1 << 22,  # VERSION_1, PROTOCOL_FEATURES, MQ
    GET_PROTOCOL_FEATURES: 1 << 0 | 1 << 3 | 1 << 15,  # MQ, REPLY_ACK, CONFIGURE_MEM_SLOTS
    GET_QUEUE_NUM: PAIRS,
    GET_MAX_MEM_SLOTS: 32,
}


class Backend:
    """Answers whatever QEMU asks and counts; it moves no packets."""

    def __init__(self, path):
        self.requests = collections.Counter()
        self.regions = collections.Counter()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        peer, _ = self.listener.accept()
        while True:
            header, fds, _, _ = socket.recv_fds(peer, 12, 8)
            if not header:
                return
            files = [os.fstat(fd).st_ino for fd in fds]
            for fd in fds:
                os.close(fd)
            request, flags, size = struct.unpack("<III", header)
            payload = peer.recv(size, socket.MSG_WAITALL) if size else b""
            self.requests[request] += 1
            if request == ADD_MEM_REG:
                self.regions[*struct.unpack("<8xQQQQ", payload), *files] += 1
            if request in ANSWERS:
                reply = struct.pack("<Q", ANSWERS[request])
            elif request == GET_VRING_BASE:
                reply = payload
            elif flags & NEED_REPLY:
                reply = struct.pack("<Q", 0)
            else:
                continue
            peer.sendall(struct.pack("<III", request, 1 | 1 << 2, len(reply)) + reply)


def entry(number, name, mode, data):
    """One member of a "newc" cpio archive."""
    name += "\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    start = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode()
    return start + bytes(-len(start) % 4) + data + bytes(-len(data) % 4)


def initramfs():
    drivers = root / "lib/modules" / kernel / "kernel/drivers"
    files = {f"{n}.ko": (drivers / f"{name}.ko").read_bytes() for n, name in enumerate(MODULES)}
    files |= {"init": INIT.encode(), "busybox": (root / "bin/busybox").read_bytes()}
    members = [entry(n, name, 0o100755, data) for n, (name, data) in enumerate(files.items(), 1)]
    return b"".join([*members, entry(0, "TRAILER!!!", 0, b"")])


(work / "initramfs").write_bytes(initramfs())
backend = Backend(work / "socket")
system, libraries = root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"
firmware = [word for name in ("qemu", "seabios") for word in ("-L", root / "usr/share" / name)]
machine = subprocess.Popen(
    [
        system / "ld-linux-x86-64.so.2", "--library-path", f"{system}:{libraries}",
        root / "usr/bin/qemu-system-x86_64", *firmware,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-m", "256M"),
        *("-object", "memory-backend-memfd,id=ram,size=256M,share=on"),
        *("-kernel", root / f"boot/vmlinuz-{kernel}", "-initrd", work / "initramfs"),
        *("-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio"),
        *("-chardev", f"socket,id=back,path={work / 'socket'}"),
        *("-netdev", f"vhost-user,id=net,chardev=back,queues={PAIRS}"),
        *("-device", "virtio-net-pci,netdev=net,mq=on,romfile=,vectors=0"),
    ],
    env=dict(os.environ, QEMU_MODULE_DIR=str(libraries / "qemu")),
    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
)
threading.Timer(300, machine.kill).start()
console = b""
while STARTED not in console and (data := machine.stdout.read1(1 << 16)):
    console += data
machine.kill()
machine.wait()
if STARTED not in console:
    print(console.decode(errors="replace"))
    print("the guest did not start")
    os._exit(1)

counts = backend.requests
print(f"{PAIRS} queue pairs: SET_OWNER {counts[SET_OWNER]}, REM_MEM_REG {counts[REM_MEM_REG]}")
for (address, size, *_), count in sorted(backend.regions.items()):
    print(f"ADD_MEM_REG of {size:#x} bytes at {address:#x}: {count}")
stated = (
    counts[SET_OWNER] == 1
    and counts[REM_MEM_REG] == 0
    and backend.regions
    and set(backend.regions.values()) == {PAIRS}
)
print("as stated" if stated else "changed", flush=True)
os._exit(not stated)
END
