"""A disk in Python that takes its time, for ``vhost-user run``."""

import os
import random
import threading
import time
from collections.abc import Sequence

import vhost_user as vu


class Slow(vu.BlockDevice):
    """Keeps requests, and carries them out and answers them one after the other in any order."""

    def __init__(self, image: str, *, seconds: float = 0.005) -> None:
        self._fd = os.open(image, os.O_RDWR)
        super().__init__(size=os.lseek(self._fd, 0, os.SEEK_END), num_queues=1)
        self._seconds = seconds
        self._kept: list[vu.BlockRequest] = []
        self._news = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def on_batch(self, batch: Sequence[vu.BlockRequest], /) -> None:
        with self._news:
            self._kept += [request.defer() for request in batch if request.op != "flush"]
            self._news.notify()

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._kept)
                request = self._kept.pop(random.randrange(len(self._kept)))
            time.sleep(self._seconds)
            if request.op == "write":
                request.pwritev(self._fd)
            else:
                request.preadv(self._fd)
            request.complete()
