"""A Linux guest on packed rings, on rings that are used in order, and on both: disks of either
kind, and the network. One boot has them all."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import vhost_user as vu

from .conftest import Boot
from .rig.machine import Device, Machine, NetworkDevice
from .rig.packages import NEWEST
from .test_net import Watched, connect, ping, replies

RUN_WITH = (NEWEST,)
DISK_BYTES = 4 << 20
WRITTEN_BYTES = 2 << 20
PAUSES = 4

RING_PACKED, IN_ORDER, INDIRECT_DESC = 34, 35, 28

DISKS = {
    "vda": ("file", "packed=on"),
    "vdb": ("shuffling", "packed=on"),
    "vdc": ("file", "packed=on,in_order=on"),
    "vdd": ("shuffling", "packed=on,in_order=on"),
    "vde": ("shuffling", "in_order=on"),
    "vdf": ("file", "packed=on,indirect_desc=off"),
}
"""By its name in the guest: who serves it, and what QEMU is told of its rings."""

LAPS = f"""
lap=0
while test ! -e /tmp/over; do
    head -c {WRITTEN_BYTES} /dev/urandom >/tmp/data
    for disk in {" ".join(DISKS)}; do
        dd if=/tmp/data of=/dev/$disk bs=64k conv=fsync 2>/dev/null &
    done
    wait
    echo 3 >/proc/sys/vm/drop_caches
    for disk in {" ".join(DISKS)}; do
        head -c {WRITTEN_BYTES} /dev/$disk | cmp -s - /tmp/data || echo $disk >>/tmp/wrong &
    done
    wait
    lap=$((lap + 1))
    echo $lap >/tmp/lap
done
touch /tmp/ended
"""
"""Writes new data to all disks at once and reads it back past the cache, over and over."""


class Shuffling(vu.BlockDevice):
    """A disk in a file that keeps requests, and carries them out and answers them in any order."""

    def __init__(self, image: Path) -> None:
        super().__init__(size=DISK_BYTES, num_queues=2)
        self.left_behind = 0
        self._image = os.open(image, os.O_RDWR)
        self._chance = random.Random(1)
        self._kept: list[vu.BlockRequest] = []
        self._news = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def on_batch(self, batch: Sequence[vu.BlockRequest]) -> None:
        with self._news:
            self._kept += [request.defer() for request in batch]
            self._news.notify()

    def close(self) -> None:
        with self._news:
            self._is_over = True
            self._news.notify()
        self._thread.join()
        os.close(self._image)

    def _work(self) -> None:
        while request := self._next():
            if request.op == "write":
                request.pwritev(self._image)
            elif request.op == "read":
                request.preadv(self._image)
            request.complete()

    def _next(self) -> vu.BlockRequest | None:
        with self._news:
            # Of a few, but nobody waits for long for more than there are.
            self._news.wait_for(lambda: len(self._kept) > 3 or self._is_over, timeout=0.005)
            self._news.wait_for(lambda: self._kept or self._is_over)
            if self._is_over:
                return None
            place = self._chance.randrange(len(self._kept))
            self.left_behind += place > 0
            return self._kept.pop(place)


@contextmanager
def served(folder: Path) -> Iterator[tuple[list[Device], dict[str, vu.Device]]]:
    """Each of the disks, and the network device, by a back-end of its own."""
    with ExitStack() as stack:
        devices: list[Device] = []
        disks: dict[str, vu.Device] = {}
        for name, (kind, rings) in DISKS.items():
            image, socket = folder / f"{name}.img", folder / name
            image.write_bytes(bytes(DISK_BYTES))
            if kind == "file":
                disks[name] = vu.FileDisk(image, num_queues=2)
            else:
                disks[name] = shuffling = Shuffling(image)
                stack.callback(shuffling.close)
            stack.enter_context(vu.Backend(disks[name], socket=socket))
            devices.append(Device(model=f"vhost-user-blk-pci,num-queues=2,{rings}", socket=socket))
        stack.enter_context(vu.Backend(Watched(), socket=folder / "net", on_error="raise"))
        card = "virtio-net-pci,packed=on,in_order=on"
        devices.append(NetworkDevice(model=card, socket=folder / "net"))
        yield devices, disks


def features(guest: Machine, device: str) -> set[int]:
    """The bits that the guest's driver has accepted."""
    bits = guest.sh(f"cat {device}/features").strip()
    return {bit for bit, is_set in enumerate(bits) if is_set == "1"}


def test_all_data_is_right_in_each_form_of_rings_and_over_pauses(
    boot: Boot, socket_path: Path
) -> None:
    with served(socket_path.parent) as (devices, disks):
        guest = boot(*devices, cpus=2)
        for name, (_, rings) in DISKS.items():
            accepted = features(guest, f"/sys/block/{name}/device")
            assert (RING_PACKED in accepted) == ("packed=on" in rings)
            assert (IN_ORDER in accepted) == ("in_order=on" in rings)
            assert (INDIRECT_DESC in accepted) == ("indirect_desc=off" not in rings)
        assert {RING_PACKED, IN_ORDER} <= features(guest, "/sys/class/net/eth0/device")
        connect(guest)
        for size in (0, 57, 1472):
            assert ping(guest, size) == replies(size)

        guest.sh(f"cat >/tmp/laps <<'END'\n{LAPS}\nEND\necho 0 >/tmp/lap; sh -eu /tmp/laps &")
        for pause in range(PAUSES):
            guest.sh(f"until test $(cat /tmp/lap) -gt {pause}; do usleep 10000; done")
            guest.pause()
            guest.resume()
        guest.sh("touch /tmp/over; until test -e /tmp/ended; do usleep 10000; done")
        assert guest.sh("cat /tmp/wrong 2>/dev/null || true") == ""
        assert ping(guest, 1472) == replies(1472)
        written = guest.sh("sha256sum </tmp/data").split()[0]
        for name, disk in disks.items():
            with (socket_path.parent / f"{name}.img").open("rb") as image:
                assert hashlib.sha256(image.read(WRITTEN_BYTES)).hexdigest() == written, name
            assert not isinstance(disk, Shuffling) or disk.left_behind, f"{name}: all in order"
