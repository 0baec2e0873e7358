"""An entropy device: any virtio type can be served with ``Device`` and one method."""

import os

import vhost_user as vu

LONGEST = 1 << 16
"""Bytes that a request gets at most: a driver may ask for gigabytes, and take less."""


class Rng(vu.Device):
    """Random bytes from the host (VIRTIO 1.3, "Entropy Device")."""

    device_id = 4

    def on_queue(self, queue: vu.Queue) -> None:
        """Called when the driver has made buffers available."""
        for request in queue:
            count = min(len(request.writable), LONGEST)
            request.writable[:count] = os.urandom(count)
            request.complete(count)


if __name__ == "__main__":
    vu.serve(Rng(), socket="rng.sock")
