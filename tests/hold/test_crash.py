"""A back-end that is killed under a front-end which cannot reconnect: the front-end sees nothing of
it, and its driver no more than a pause."""

import os
import random
import threading
from pathlib import Path

import pytest
import vhost_user as vu
from peer import wire
from peer.blk import Status
from peer.dirty_log import Copy, DirtyLog
from peer.front_end import WANTED
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message
from peer.writes import SLOTS, Load

from .conftest import assert_written
from .held import COMMAND, Held

ROUNDS = int(os.environ.get("HOLD_ROUNDS", "6"))
NEVER = ("--give-up-after=0",)


def kill_under_load(held: Held, load: Load, rounds: int) -> None:
    """Kills back-ends with requests in flight, each at a random moment."""
    chance = random.Random(1)
    for _ in range(rounds):
        for _ in range(chance.randrange(1, 12)):
            load.submit()
            load.take(chance.randrange(1, SLOTS))
        load.submit()
        held.kill_back_end()
    load.submit()
    load.finish()


def test_a_front_end_that_knows_of_no_record_loses_no_request(
    folder: Path, back_end: list[str]
) -> None:
    with Held.around(folder, *back_end, options=NEVER) as held:
        front = held.connect().start()
        assert not front.protocol & ProtocolFeature.INFLIGHT_SHMFD
        load = Load(front)
        kill_under_load(held, load, ROUNDS)
        assert_written(folder, load)
        front.channel.close()
        assert held.end() == 0


def test_a_front_end_with_a_record_of_its_own_loses_no_request(
    folder: Path, back_end: list[str]
) -> None:
    with Held.around(folder, *back_end, options=NEVER) as held:
        front = held.connect()
        front.negotiate(protocol=WANTED | ProtocolFeature.INFLIGHT_SHMFD)
        front.channel.command(Message.GET_INFLIGHT_FD, wire.inflight(0, 0, 1, 128))
        record = front.channel.answer_to(Message.GET_INFLIGHT_FD)
        (fd,) = front.channel.descriptors
        front.change(Message.SET_INFLIGHT_FD, record, [fd])
        front.share_memory().start_ring()
        load = Load(front)
        kill_under_load(held, load, ROUNDS)
        assert_written(folder, load)


@pytest.mark.parametrize("in_order", [False, True], ids=["any order", "in order"])
def test_a_driver_of_packed_rings_loses_no_request(
    folder: Path, back_end: list[str], in_order: bool
) -> None:
    """The keeper has the record: the driver keeps none, and could not connect again."""
    with Held.around(folder, *back_end, options=NEVER) as held:
        over = threading.Event()

        def kill() -> None:
            try:
                for _ in range(ROUNDS):
                    held.kill_back_end()
            finally:
                over.set()

        killer = threading.Thread(target=kill)
        with vu.VirtioBlkDriver(held.socket, packed=True, in_order=in_order, timeout=60) as driver:
            killer.start()
            reports = []
            while not over.is_set():
                driver.prepare_load()
                reports.append(driver.run_load("randread", ops=2000, verify="all"))
            killer.join()
        assert held.said.count(" goes on, ") == ROUNDS
        assert not any(report.errors or report.mismatches for report in reports)


def test_the_next_back_end_marks_in_the_log_what_it_writes(folder: Path) -> None:
    """It is given the log before the rings: nobody would tell it again."""
    with Held.around(folder, *COMMAND, "blk", "disk.img", options=NEVER) as held:
        front = held.connect()
        front.negotiate(protocol=WANTED | ProtocolFeature.LOG_SHMFD)
        front.share_memory().start_ring()
        log = DirtyLog(front)
        log.start()
        disk = front.blk()
        assert disk.write(0, b"k" * 4096).status == Status.OK
        held.kill_back_end()
        before, marked = Copy(front), log.marked()
        read = disk.read(0, 4096)
        assert read.status == Status.OK
        changed = before.changed()
        assert changed - marked
        assert changed <= log.marked()
        front.channel.close()
