"""A back-end that is killed under a front-end which cannot reconnect: the front-end sees nothing of
it, and its driver no more than a pause."""

import os
import random
from pathlib import Path

from peer import wire
from peer.front_end import WANTED
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message
from peer.writes import SLOTS, Load

from .conftest import assert_written
from .held import Held

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
