"""A back-end that is killed with requests in flight: the next one finishes them, and the driver
sees no more than a pause."""

import os
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer.blk import Status, Type
from peer.mortal import Mortal, come_back, negotiate, new_record
from peer.numbers import Request as Message
from peer.shuffling import SHUFFLING
from peer.writes import BYTES, SLOTS, Load

ROUNDS = int(os.environ.get("RECOVERY_ROUNDS", "12"))

COMMANDS = {
    "blk": ["-m", "vhost_user", "blk", "--blk-file=disk.img", "--socket-path=disk.sock"],
    "shuffling": ["-c", f'{SHUFFLING}vu.serve(Shuffling(), socket="disk.sock")'],
}


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
