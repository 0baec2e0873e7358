"""A back-end that is killed with requests in flight: the next one finishes them, and the driver
sees no more than a pause."""

import os
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer.blk import CANARY, Status, Type
from peer.front_end import FrontEnd
from peer.mortal import Mortal, come_back, negotiate, new_record
from peer.numbers import Request as Message

ROUNDS = int(os.environ.get("RECOVERY_ROUNDS", "12"))
SLOTS = 16
BYTES = 4096

SHUFFLING = """
    import os, random, threading
    import vhost_user as vu

    class Shuffling(vu.BlockDevice):
        '''Keeps requests, and carries them out and answers them in any order.'''

        def __init__(self):
            self.fd = os.open("disk.img", os.O_RDWR)
            super().__init__(size=os.fstat(self.fd).st_size)
            self.kept, self.news = [], threading.Condition()
            threading.Thread(target=self.work, daemon=True).start()

        def on_batch(self, batch):
            with self.news:
                self.kept += [request.defer() for request in batch]
                self.news.notify()

        def work(self):
            while True:
                with self.news:
                    self.news.wait_for(lambda: len(self.kept) > 4, timeout=0.01)
                    request = self.kept.pop(random.randrange(len(self.kept))) if self.kept else None
                if request:
                    request.pwritev(self.fd) if request.op == "write" else request.preadv(self.fd)
                    request.complete()

    vu.serve(Shuffling(), socket="disk.sock")
"""

COMMANDS = {
    "blk": ["-m", "vhost_user", "blk", "--blk-file=disk.img", "--socket-path=disk.sock"],
    "shuffling": ["-c", textwrap.dedent(SHUFFLING)],
}


class Load:
    """Writes that are in flight all the time, each to a place of its own."""

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        disk = front.blk()
        self._requests = [disk.prepare(Type.OUT, 8 * n, bytes(BYTES)) for n in range(SLOTS)]
        self._written = [0] * SLOTS
        self._in_flight: dict[int, int] = {}

    def submit(self) -> None:
        """Has every request in flight that is not."""
        memory, ring = self.front.memory, self.front.rings[0]
        for slot in set(range(SLOTS)) - set(self._in_flight.values()):
            self._written[slot] += 1
            request = self._requests[slot]
            memory.write(request.data, self.data(slot))
            memory.write(request.status, bytes([CANARY]))
            self._in_flight[ring.add(request.chain())] = slot
        ring.kick()

    def data(self, slot: int) -> bytes:
        """What was written last to a place."""
        return random.Random(self._written[slot] * SLOTS + slot).randbytes(BYTES)

    def take(self, count: int) -> None:
        """Waits for answers; each is the only one to its request, and good."""
        for used in self.front.rings[0].wait(count, 60):
            slot = self._in_flight.pop(used.head)
            status = self.front.memory.read(self._requests[slot].status, 1)[0]
            assert status == Status.OK, f"request {slot} ended with {status:#x}"

    def finish(self) -> None:
        """Waits for all."""
        self.take(len(self._in_flight))


@pytest.fixture(params=COMMANDS)
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mortal]:
    """A back-end of each kind."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    with Mortal(tmp_path, COMMANDS[request.param]) as served:
        yield served


def test_a_killed_back_end_loses_no_request_and_repeats_no_answer(
    mortal: Mortal, tmp_path: Path
) -> None:
    chance = random.Random(1)
    front = mortal.connect()
    negotiate(front)
    record = new_record(front)
    front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
    front.share_memory().start_ring()
    load = Load(front)
    for _ in range(ROUNDS):
        for _ in range(chance.randrange(1, 12)):
            load.submit()
            load.take(chance.randrange(1, SLOTS))
        load.submit()
        mortal.replace()
        load.front = front = come_back(mortal, front, record)
    load.submit()
    load.finish()
    with (tmp_path / "disk.img").open("rb") as image:
        assert all(image.read(BYTES) == load.data(slot) for slot in range(SLOTS))
    os.close(record[1])
    front.channel.close()


def test_a_request_that_comes_again_says_so_and_keeps_its_number(tmp_path: Path) -> None:
    body = """
        import os
        import vhost_user as vu
        first = not os.path.exists("again")
        kept = []

        class Telling(vu.BlockDevice):
            def on_batch(self, batch):
                for request in batch:
                    text = f"{request.offset} {request.sequence} {request.resubmitted}"
                    with open("told", "a") as told:
                        print(text, file=told)
                    if first and request.offset == 0:
                        kept.append(request.defer())
                    else:
                        request.fill(1)

        vu.serve(Telling(size=1 << 20), socket="disk.sock")
    """
    with Mortal(tmp_path, ["-c", textwrap.dedent(body)]) as mortal:
        front = mortal.connect()
        negotiate(front)
        record = new_record(front)
        front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
        front.share_memory().start_ring()
        disk = front.blk()
        lost = disk.prepare(Type.IN, 0, room=512)
        head = disk.submit(lost)
        front.rings[0].kick()
        assert disk.read(8, 512).data == b"\1" * 512
        (tmp_path / "again").touch()
        mortal.replace()
        front = come_back(mortal, front, record)
        (used,) = front.rings[0].wait(1, 60)
        assert (used.head, disk.result(lost).data) == (head, b"\1" * 512)
        assert front.blk().read(16, 512).status == Status.OK
        told = ["0 0 False", "4096 1 False", "0 0 True", "8192 2 False"]
        assert (tmp_path / "told").read_text().splitlines() == told
        os.close(record[1])
        front.channel.close()
