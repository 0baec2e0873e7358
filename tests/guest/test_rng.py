"""A device type of a few lines: ``Device`` serves a source of entropy."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import vhost_user as vu

from .conftest import Boot
from .rig.machine import Device

READ_BYTES = 64
"""Linux takes this much of the device at a time for a reader of /dev/hwrng."""

READS = 32


class Entropy(vu.Device):
    """VIRTIO 1.3, "Entropy Device": fill each buffer; here also remember what went into it."""

    device_id = 4

    def __init__(self) -> None:
        super().__init__(num_queues=1)
        self.given = bytearray()

    def on_queue(self, queue: vu.Queue) -> None:
        for request in queue:
            data = os.urandom(len(request.writable))
            request.writable[:] = data
            self.given += data
            request.complete(len(data))


def test_the_guest_reads_the_bytes_that_the_device_gave(boot: Boot, socket_path: Path) -> None:
    device = Entropy()
    with vu.Backend(device, socket=socket_path):
        guest = boot(Device(model="vhost-user-rng-pci", socket=socket_path))
        assert guest.sh("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
        read = base64.b64decode(
            guest.sh(f"dd if=/dev/hwrng bs={READ_BYTES} count={READS} 2>/dev/null | base64 -w 0")
        )
    assert len(read) == READS * READ_BYTES
    for start in range(0, len(read), READ_BYTES):
        assert read[start : start + READ_BYTES] in device.given
