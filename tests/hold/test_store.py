"""A keeper whose service manager keeps descriptors for it: the next one has its front-end."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import wire
from peer.blk import Status, Type
from peer.memory import PAGE, GuestMemory, Region
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message
from peer.writes import SLOTS, Load

from .conftest import BACK_ENDS, assert_written
from .held import COMMAND, SOCKET, Held, sector
from .manager import Manager

ROUNDS = int(os.environ.get("HOLD_ROUNDS", "6"))
GOES_ON = "the front-end of the last keeper goes on here"


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    """One that has room."""
    with Manager(folder) as kept:
        yield kept


def hold(*command: str) -> list[str]:
    """The service."""
    return [*COMMAND, "hold", SOCKET, "--", *command]


def killed(held: Held) -> None:
    """Kills a keeper, as it may be at any moment."""
    held.process.kill()
    held.process.wait()


def test_a_keeper_that_is_killed_under_load_loses_no_request(
    manager: Manager, folder: Path, back_end: list[str]
) -> None:
    chance = random.Random(3)
    held = manager.start(hold(*back_end))
    front = held.connect().start()
    load = Load(front)
    for _ in range(ROUNDS):
        for _ in range(chance.randrange(1, 12)):
            load.submit()
            load.take(chance.randrange(1, SLOTS))
        load.submit()
        killed(held)
        held = manager.start(hold(*back_end))
        assert GOES_ON in held.said
    # What the first one was told is still known when a back-end dies, and is replaced.
    held.kill_back_end()
    load.submit()
    held.process.send_signal(signal.SIGHUP)
    held.assert_says(" follows process ")
    load.finish()
    assert_written(folder, load)
    front.stop_ring()
    front.channel.close()
    manager.assert_empty()
    assert held.end() == 0


def test_a_keeper_that_is_restarted_goes_on(manager: Manager) -> None:
    """As by systemctl restart, when the package was upgraded."""
    held = manager.start(hold(*BACK_ENDS["blk"]))
    front = held.connect().start(queues=2)
    front.blk().write(0, b"\5" * 512)
    assert held.end() == 0
    held = manager.start(hold(*BACK_ENDS["blk"]))
    assert GOES_ON in held.said
    assert sector(front, 1) == b"\5" * 512
    assert held.end() == 0


def test_what_a_front_end_has_negotiated_outlives_the_keeper(manager: Manager) -> None:
    """Before a ring runs, with more regions than descriptors fit into a message."""
    apart = [Region((1 << 30) + n * 2 * PAGE, PAGE) for n in range(400)]
    memory = GuestMemory(Region(0, 16 << 20), *apart)
    held = manager.start(hold(*BACK_ENDS["blk"]))
    with held.connect(memory).negotiate() as front:
        for region in memory.regions:
            front.change(Message.ADD_MEM_REG, wire.single_region(region.describe()), [region.fd])
        killed(held)
        held = manager.start(hold(*BACK_ENDS["blk"]))
        front.start_ring()
        assert sector(front) == bytes(512)
    assert held.end() == 0


def test_a_message_that_waits_for_its_answer_has_it_from_the_next_keeper(
    manager: Manager, folder: Path
) -> None:
    body = """
import os
import vhost_user as vu
kept = []

class Keeping(vu.BlockDevice):
    def on_batch(self, batch):
        for request in batch:
            if os.path.exists("again"):
                request.fill(7)
            else:
                kept.append(request.defer())
                open("taken", "w").close()

vu.serve(Keeping(size=1 << 20))
"""
    (folder / "keeping.py").write_text(body)
    held = manager.start(hold(COMMAND[0], "keeping.py"))
    front = held.connect().start()
    disk = front.blk()
    request = disk.prepare(Type.IN, 0, room=512)
    disk.submit(request)
    front.rings[0].kick()
    held.wait_until((folder / "taken").exists, "the request was taken")
    stored = set(manager.stored)
    front.channel.command(Message.GET_VRING_BASE, bytes(8))
    held.wait_until(lambda: not stored & set(manager.stored), "the message is stored")
    (folder / "again").touch()
    killed(held)
    held = manager.start(hold(COMMAND[0], "keeping.py"))
    answer = front.channel.answer_to(Message.GET_VRING_BASE)
    assert int.from_bytes(answer[4:8], "little") == 1
    front.rings[0].wait(1, 60)
    result = disk.result(request)
    assert (result.status, result.data) == (Status.OK, b"\7" * 512)
    killed(held)


def test_a_front_end_that_leaves_leaves_nothing_in_the_store(manager: Manager) -> None:
    held = manager.start(hold(*BACK_ENDS["blk"]))
    for _ in range(2):
        front = held.connect().start()
        assert manager.stored
        front.channel.close()
        manager.assert_empty()
    killed(held)
    held = manager.start(hold(*BACK_ENDS["blk"]))
    assert GOES_ON not in held.said
    assert held.end() == 0


def test_a_front_end_that_left_meanwhile_is_not_missed(manager: Manager) -> None:
    held = manager.start(hold(*BACK_ENDS["blk"]))
    front = held.connect().start()
    killed(held)
    front.channel.close()
    held = manager.start(hold(*BACK_ENDS["blk"]))
    manager.assert_empty()
    assert sector(held.connect().start()) == bytes(512)
    killed(held)


def test_without_room_in_the_store_the_front_end_is_lost_and_the_next_is_served(
    folder: Path,
) -> None:
    with Manager(folder, room=0) as manager:
        held = manager.start(hold(*BACK_ENDS["blk"]))
        front = held.connect().start()
        killed(held)
        assert front.channel.is_closed()
        held = manager.start(hold(*BACK_ENDS["blk"]))
        assert sector(held.connect().start()) == bytes(512)
        killed(held)


def test_a_manager_that_has_no_store_is_sent_nothing(manager: Manager) -> None:
    held = manager.start(hold(*BACK_ENDS["blk"]), FDSTORE="0")
    front = held.connect().start()
    manager.settle()
    assert not manager.stored
    killed(held)
    assert front.channel.is_closed()


def test_what_is_in_the_store_and_no_keeper_has_put_there_is_refused(manager: Manager) -> None:
    for number in (8, 11):
        reader, writer = os.pipe()
        os.close(writer)
        manager.stored[f"vhost-user-hold-{number}"] = reader
    held = manager.start(hold(*BACK_ENDS["blk"]))
    assert "the last keeper's front-end is lost: " in held.said
    manager.assert_empty()
    assert sector(held.connect().start()) == bytes(512)
    assert held.end() == 0


def test_a_back_end_that_is_given_up_takes_the_front_end_out_of_the_store(
    manager: Manager, folder: Path
) -> None:
    script = folder / "serve"
    script.write_text(f"#!/bin/sh\nexec {' '.join(BACK_ENDS['blk'])}\n")
    script.chmod(0o700)
    words = [*COMMAND, "hold", SOCKET, "--give-up-after=2", "--", "./serve"]
    held = manager.start(words)
    front = held.connect().start()
    assert front.protocol & ProtocolFeature.REPLY_ACK
    script.write_text("#!/bin/sh\nexit 9\n")
    os.kill(held.back_end(), signal.SIGKILL)
    assert held.process.wait(60) == 1
    assert front.channel.is_closed()
    manager.assert_empty()
