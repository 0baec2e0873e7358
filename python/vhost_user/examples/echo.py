"""A network device that sends every packet back, on one pair of queues or on several."""

from collections import deque

import vhost_user as vu

HEADER = bytes(12)
"""In front of each packet; its last two bytes say in how many buffers the packet lies."""

NUM_BUFFERS = 10
MRG_RXBUF, MQ = 1 << 15, 1 << 22


class Echo(vu.Device):
    """Pair k receives on queue 2k and sends on 2k + 1 (VIRTIO 1.3, "Network Device")."""

    device_id = 1

    def __init__(self, pairs: int = 1) -> None:
        receive = tuple(range(0, 2 * pairs, 2))
        features = MRG_RXBUF | (MQ if pairs > 1 else 0)
        super().__init__(num_queues=2 * pairs, features=features, receive_queues=receive)
        self.waiting: dict[int, deque[vu.Request]] = {index: deque() for index in receive}

    def on_queue(self, queue: vu.Queue) -> None:
        """Takes what the driver sends and keeps it until the driver has room for it."""
        self.waiting[queue.index - 1].extend(request.defer() for request in queue)
        self.on_buffers(self.queues[queue.index - 1])

    def on_buffers(self, queue: vu.Queue) -> None:
        """Sends what waits, as far as the driver's buffers go."""
        most = queue.size if self.negotiated_features & MRG_RXBUF else 1
        waiting = self.waiting[queue.index]
        while waiting:
            packet = waiting[0].readable[len(HEADER) :]
            try:
                if not queue.send(HEADER, packet, max_buffers=most, count_at=NUM_BUFFERS):
                    return
            except vu.GuestError:
                pass  # too long for the driver's own buffers: lost, as it would be on a cable
            waiting.popleft().complete(0)

    def on_queue_stop(self, queue: vu.Queue) -> None:
        """What waits when its queue stops is lost, as it would be on a cable."""
        if queue.index % 2:
            for request in self.waiting[queue.index - 1]:
                request.complete(0)
            self.waiting[queue.index - 1].clear()


if __name__ == "__main__":
    vu.serve(Echo(), socket="echo.sock")
