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
from peer.process import eventually
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


def test_without_a_record_the_ring_goes_on_from_its_used_index(tmp_path: Path) -> None:
    """What was in flight comes again from the available ring, as no request was answered out of
    order. Nothing that was acknowledged is lost."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    chance = random.Random(2)
    with Mortal(tmp_path, COMMANDS["blk"]) as mortal:
        front = mortal.connect().negotiate().share_memory()
        front.start_ring()
        load = Load(front)
        for _ in range(ROUNDS):
            for _ in range(chance.randrange(1, 12)):
                load.submit()
                load.take(chance.randrange(1, SLOTS))
            load.submit()
            mortal.replace()
            front.channel.close()
            rings, memory = front.rings, front.memory
            load.front = front = mortal.connect(memory).negotiate().share_memory()
            front.rings = rings
            front.start_ring(base=rings[0].used_index)
        load.submit()
        load.finish()
        with (tmp_path / "disk.img").open("rb") as image:
            assert all(image.read(BYTES) == load.data(slot) for slot in range(SLOTS))
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


HOLDING = """
    import os, threading
    import vhost_user as vu

    class Holding(vu.BlockDevice):
        '''Keeps the first of its requests, by the request or by a view of its data.'''

        held = []

        def on_batch(self, batch):
            for request in batch:
                told = f"{request.offset} {request.resubmitted}"
                if request.offset == 0 and not request.resubmitted:
                    self.held.append(request.defer())
                elif request.offset == 4096 and not request.resubmitted:
                    self.held.append(request.data)
                with open("told", "a") as file:
                    print(told, file=file)

    vu.serve(Holding(size=1 << 20), socket="disk.sock")
"""


def test_a_deferred_request_and_one_held_by_a_view_outlive_a_crash(tmp_path: Path) -> None:
    with Mortal(tmp_path, ["-c", textwrap.dedent(HOLDING)]) as mortal:
        front = mortal.connect()
        negotiate(front)
        record = new_record(front)
        front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
        front.share_memory().start_ring()
        disk = front.blk()
        requests = [disk.prepare(Type.OUT, sector, bytes(512)) for sector in (0, 8, 16)]
        heads = [disk.submit(request) for request in requests]
        front.rings[0].kick()
        # The third is answered; the second is too, but for its view.
        (used,) = front.rings[0].wait(1, 60)
        assert used.head == heads[2]
        mortal.replace()
        front = come_back(mortal, front, record)
        assert [used.head for used in front.rings[0].wait(2, 60)] == heads[:2]
        assert all(front.blk().result(request).status == Status.OK for request in requests)
        told = ["0 False", "4096 False", "8192 False", "0 True", "4096 True"]
        assert (tmp_path / "told").read_text().splitlines() == told
        os.close(record[1])
        front.channel.close()


def test_a_fresh_record_at_a_used_index_that_is_not_0(tmp_path: Path) -> None:
    """As at a migration's destination: the ring stands at 1000, and its record is empty."""
    with Mortal(tmp_path, ["-c", textwrap.dedent(HOLDING)]) as mortal:
        front = mortal.connect()
        negotiate(front)
        record = new_record(front)
        front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
        ring = front.share_memory().add_ring()
        ring.available_index = 1000
        front.memory.write(ring.places.used + 2, (1000).to_bytes(2, "little"))
        ring.seen = 1000
        front.start_ring(base=1000)
        disk = front.blk()
        lost = disk.submit(disk.prepare(Type.OUT, 0, bytes(512)))
        ring.kick()
        told = tmp_path / "told"
        assert eventually(lambda: told.exists() and told.read_text() == "0 False\n", 60)
        # It dies before it has given anything back.
        mortal.replace()
        front = come_back(mortal, front, record)
        assert [used.head for used in ring.wait(1, 60)] == [lost]
        assert front.blk().write(8 * 2, bytes(512)).status == Status.OK
        assert ring.used_index == 1002
        assert told.read_text().splitlines() == ["0 False", "0 True", "8192 False"]
        os.close(record[1])
        front.channel.close()


def test_each_start_of_a_driver_has_a_record_of_its_own(tmp_path: Path) -> None:
    """QEMU asks anew whenever a driver starts: the former record is nobody's any more."""
    with Mortal(tmp_path, ["-c", textwrap.dedent(HOLDING)]) as mortal:
        front = mortal.connect()
        negotiate(front)
        front.share_memory()
        record = new_record(front)
        for _ in range(2):
            os.close(record[1])
            record = new_record(front)
            front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
            front.start_ring()
            for sector in (16, 24):
                assert front.blk().write(sector, bytes(512)).status == Status.OK
            assert front.stop_ring() == 2
            front.change(Message.RESET_DEVICE)
            front.rings.pop(0).close()
        front.start_ring()
        mortal.replace()
        front = come_back(mortal, front, record)
        assert front.blk().write(32, bytes(512)).status == Status.OK
        told = ["8192 False", "12288 False"] * 2 + ["16384 False"]
        assert (tmp_path / "told").read_text().splitlines() == told
        os.close(record[1])
        front.channel.close()
