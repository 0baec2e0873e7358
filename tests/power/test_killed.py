"""A power cut after the back-end was killed and another one went on: what its predecessor has
promised holds all the same."""

import os
from pathlib import Path

import pytest
from peer.blk import BlkFeature
from peer.mortal import Mortal, come_back, negotiate, new_record
from peer.numbers import Request as Message

from .account import Driver
from .disk import VolatileDisk

KILLS = int(os.environ.get("POWER_KILLS", "4"))
BLK = ["-m", "vhost_user", "blk", "--socket-path=disk.sock"]


@pytest.mark.parametrize("more", [[], ["--direct"]], ids=["cached", "direct"])
@pytest.mark.parametrize("never", [0, BlkFeature.FLUSH], ids=["flushes", "no flushes"])
def test_the_promises_of_a_killed_back_end_outlive_a_power_cut(
    disk: VolatileDisk, tmp_path: Path, more: list[str], never: BlkFeature
) -> None:
    folder = tmp_path / "back-end"
    folder.mkdir()
    with Mortal(folder, [*BLK, f"--blk-file={disk.path}", *more]) as mortal:
        front = mortal.connect()
        negotiate(front, never=never)
        record = new_record(front)
        front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
        front.share_memory().start_ring()
        driver = Driver(front, seed=5, flushes=not never)
        for _ in range(KILLS):
            for _ in range(4):
                driver.turn()
                driver.account.check(disk.state())
            driver.submit()
            mortal.replace()
            driver.account.check(disk.state())
            front = come_back(mortal, front, record, never=never)
            driver.go_on(front)
        driver.finish()
        driver.account.check(disk.state())
        assert any(driver.account.sure)
        os.close(record[1])
        front.channel.close()
