#!/usr/bin/env bash
# QEMU 7.2: every disk that qemu-storage-daemon exports by vhost-user has the same serial number.
#
# VIRTIO_BLK_T_GET_ID asks a disk for a string of its own, which Linux shows as the disk's serial
# number and from which it makes stable names. Two exports with different names, nodes and images
# answer it alike, with "vhost_user_blk", and --export has no property that would say otherwise.
# A small front-end in Python puts the request into a ring and reads the answer.
#
# Exit: 0 as stated, 1 changed, 77 the packages cannot be had.
set -euo pipefail

version=1:7.2+dfsg-7+deb12u18+b3

source "$(dirname "${BASH_SOURCE[0]}")/lib/debian.sh"
daemon=
trap '[ -z "$daemon" ] || kill "$daemon"; rm -rf "$work"' EXIT
read_lists
fetch "qemu-system-common=$version"
unpack
echo "qemu-system-common $version"

system="$work/root/lib/x86_64-linux-gnu"
qemu() {
    exec "$system/ld-linux-x86-64.so.2" \
        --library-path "$system:$work/root/usr/lib/x86_64-linux-gnu" \
        "$work/root/usr/bin/qemu-storage-daemon" "$@"
}

exports=()
address="addr.type=unix,addr.path=$work"
for name in red blue; do
    truncate --size 1M "$work/$name.img"
    exports+=(
        --blockdev "file,node-name=node-$name,filename=$work/$name.img"
        --export "vhost-user-blk,id=export-$name,node-name=node-$name,writable=on,$address/$name"
    )
done
refused=$( (qemu "${exports[@]}",serial=red) 2>&1 || true)
echo "with serial=red: ${refused##*: }"
[[ $refused == *"'serial' is unexpected"* ]] || {
    echo "changed"
    exit 1
}

qemu "${exports[@]}" &
daemon=$!

timeout 60 python3 - "$work/red" "$work/blue" <<'END'
import mmap, os, select, socket, struct, sys, time

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ENABLE = 12, 13, 18
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30

GET_ID, OK, ID_BYTES = 8, 0, 20
NEXT, WRITE = 1, 2

# Where things are in one page of guest memory.
DESCRIPTORS, AVAILABLE, USED, HEADER, ANSWER = 0, 0x100, 0x200, 0x300, 0x400
ENTRIES = 8


def connect(path):
    end = time.monotonic() + 30
    while True:
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect(path)
            return peer
        except (FileNotFoundError, ConnectionRefusedError):
            peer.close()
            if time.monotonic() > end:
                sys.exit(f"nobody listens at {path}")
            time.sleep(0.05)


def send(peer, request, payload=b"", fds=()):
    message = struct.pack("<III", request, 1, len(payload)) + payload
    socket.send_fds(peer, [message], fds)


def serial_number(path):
    peer = connect(path)
    send(peer, GET_FEATURES)
    offered = struct.unpack("<12xQ", peer.recv(20, socket.MSG_WAITALL))[0]
    send(peer, SET_OWNER)
    send(peer, SET_FEATURES, struct.pack("<Q", offered & (VERSION_1 | PROTOCOL_FEATURES)))

    file = os.memfd_create("guest")
    os.ftruncate(file, mmap.PAGESIZE)
    memory = mmap.mmap(file, mmap.PAGESIZE)
    kick, call = os.eventfd(0), os.eventfd(0)
    for number, (place, length, flags) in enumerate((
        (HEADER, 16, NEXT), (ANSWER, ID_BYTES, NEXT | WRITE), (ANSWER + ID_BYTES, 1, WRITE),
    )):
        struct.pack_into("<QIHH", memory, DESCRIPTORS + 16 * number, place, length, flags, number + 1)
    struct.pack_into("<IIQ", memory, HEADER, GET_ID, 0, 0)
    memory[ANSWER + ID_BYTES] = 0xFF
    struct.pack_into("<HHH", memory, AVAILABLE, 0, 1, 0)

    send(peer, SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, mmap.PAGESIZE, 0, 0), [file])
    send(peer, SET_VRING_NUM, struct.pack("<II", 0, ENTRIES))
    send(peer, SET_VRING_BASE, struct.pack("<II", 0, 0))
    send(peer, SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, DESCRIPTORS, USED, AVAILABLE, 0))
    send(peer, SET_VRING_CALL, struct.pack("<Q", 0), [call])
    send(peer, SET_VRING_KICK, struct.pack("<Q", 0), [kick])
    send(peer, SET_VRING_ENABLE, struct.pack("<II", 0, 1))
    os.eventfd_write(kick, 1)
    while memory[ANSWER + ID_BYTES] == 0xFF:
        if not select.select([call], [], [], 30)[0]:
            sys.exit("no answer to VIRTIO_BLK_T_GET_ID")
        os.eventfd_read(call)
    status = memory[ANSWER + ID_BYTES]
    peer.close()
    return status, memory[ANSWER : ANSWER + ID_BYTES].rstrip(b"\0").decode()


answers = [serial_number(path) for path in sys.argv[1:]]
for path, (status, serial) in zip(sys.argv[1:], answers):
    print(f"export-{os.path.basename(path)}: status {status}, serial number {serial!r}")
stated = answers == [(OK, "vhost_user_blk")] * 2
print("as stated" if stated else "changed")
sys.exit(not stated)
END
