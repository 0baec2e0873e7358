"""A power cut after the back-end was killed and another one went on: what its predecessor has
promised holds all the same."""

import os
from pathlib import Path

import pytest
from peer import wire
from peer.blk import CONFIG_WRITEBACK, BlkFeature
from peer.front_end import FrontEnd
from peer.mortal import Mortal, come_back, negotiate, new_record
from peer.numbers import Request as Message

from .account import Driver
from .disk import VolatileDisk

KILLS = int(os.environ.get("POWER_KILLS", "4"))
BLK = ["-m", "vhost_user", "blk", "--socket-path=disk.sock"]


def cache(front: FrontEnd) -> int:
    """The mode of the write cache, as the configuration has it."""
    asked = wire.config(CONFIG_WRITEBACK, 1, b"\0")
    return front.channel.ask(Message.GET_CONFIG, asked)[-1]


def set_cache(front: FrontEnd, mode: int) -> None:
    front.change(Message.SET_CONFIG, wire.config(CONFIG_WRITEBACK, 1, bytes([mode])))


def new_folder(tmp_path: Path) -> Path:
    """A folder for a back-end's socket; nothing is made where the disk is mounted."""
    folder = tmp_path / "back-end"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("more", [[], ["--direct"]], ids=["cached", "direct"])
@pytest.mark.parametrize("never", [0, BlkFeature.FLUSH], ids=["flushes", "no flushes"])
def test_the_promises_of_a_killed_back_end_outlive_a_power_cut(
    disk: VolatileDisk, tmp_path: Path, more: list[str], never: BlkFeature
) -> None:
    folder = new_folder(tmp_path)
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


def test_a_write_cache_that_was_turned_off_stays_off_when_the_back_end_is_killed(
    disk: VolatileDisk, tmp_path: Path
) -> None:
    """The driver is told nothing of it, and takes each write for durable as before."""
    with Mortal(new_folder(tmp_path), [*BLK, f"--blk-file={disk.path}"]) as mortal:
        front = mortal.connect()
        negotiate(front)
        record = new_record(front)
        front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
        front.share_memory().start_ring()
        driver = Driver(front, seed=6, flushes=False)
        set_cache(front, 0)
        for _ in range(KILLS):
            driver.turn()
            mortal.replace()
            front = come_back(mortal, front, record)
            assert cache(front) == 0
            driver.go_on(front)
            for _ in range(4):
                driver.turn()
                driver.account.check(disk.state())
        driver.finish()
        driver.account.check(disk.state())
        set_cache(front, 1)
        mortal.replace()
        front = come_back(mortal, front, record)
        assert cache(front) == 1
        os.close(record[1])
        front.channel.close()


@pytest.mark.parametrize("note", [b"\x00\x00", b"\x07\x57", b"\x00\x58", b"\xff\xff"])
def test_a_note_of_nonsense_changes_no_cache(
    disk: VolatileDisk, tmp_path: Path, note: bytes
) -> None:
    with Mortal(new_folder(tmp_path), [*BLK, f"--blk-file={disk.path}"]) as mortal:
        front = mortal.connect()
        negotiate(front)
        payload, fd = new_record(front)
        # The device has as many entries as any ring may have: 16 bytes each, and a header.
        of_one = 16 * 32768 + 64
        assert int.from_bytes(payload[:8], "little") == of_one
        os.pwrite(fd, note, of_one - 8)
        front.change(Message.SET_INFLIGHT_FD, payload, [fd])
        front.share_memory().start_ring()
        assert cache(front) == 1
        # This is the place: a ring has started, and the mode is noted.
        assert os.pread(fd, 2, of_one - 8) == b"\x01\x57"
        os.close(fd)
        front.close()
