"""A back-end that is paused: nothing is taken from its rings, and nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import vhost_user as vu
from peer.blk import SECTOR, Status
from peer.front_end import FrontEnd
from peer.process import eventually

from .disks import Keeping, RamDisk

QUIET = 0.3
"""Seconds in which a worker that took requests would have taken some."""


@pytest.fixture
def backend(socket_path: Path) -> Iterator[vu.Backend]:
    with vu.Backend(RamDisk(num_queues=2), socket=socket_path) as backend:
        yield backend


def test_a_paused_back_end_takes_nothing_and_resumed_it_takes_what_has_waited(
    backend: vu.Backend, socket_path: Path
) -> None:
    with FrontEnd.connect(str(socket_path)).start(queues=2) as front:
        assert front.blk(0).read(0, SECTOR).status == Status.OK
        assert backend.pause()
        paused = backend.is_paused
        assert paused
        for index in range(2):
            disk = front.blk(index)
            disk.submit(disk.prepare(1, index, data=bytes([index + 1]) * SECTOR))
            disk.ring.kick()
        assert not eventually(lambda: sum(q.requests for q in backend.stats()) > 1, QUIET)
        assert sum(queue.in_flight for queue in backend.stats()) == 0
        assert backend.resume()
        assert backend.is_paused is False
        assert eventually(lambda: [q.requests for q in backend.stats()] == [2, 1])


def test_requests_in_flight_go_on_while_it_is_paused(socket_path: Path) -> None:
    disk = Keeping()
    with (
        vu.Backend(disk, socket=socket_path) as backend,
        FrontEnd.connect(str(socket_path)).start() as front,
    ):
        blk = front.blk()
        blk.submit(blk.prepare(0, 0, room=SECTOR))
        blk.ring.kick()
        kept = disk.take()
        assert backend.pause()
        assert backend.stats()[0].in_flight == 1
        kept.complete()
        assert eventually(lambda: backend.stats()[0].requests == 1)


def test_the_next_front_end_waits_too_and_a_ring_stops_as_ever(
    backend: vu.Backend, socket_path: Path
) -> None:
    assert backend.pause()
    with FrontEnd.connect(str(socket_path)).start() as front:
        blk = front.blk()
        blk.submit(blk.prepare(0, 0, room=SECTOR))
        blk.ring.kick()
        assert not eventually(lambda: backend.stats()[0].requests > 0, QUIET)
    with FrontEnd.connect(str(socket_path)).start() as front:
        assert backend.resume()
        assert front.blk().read(0, SECTOR).status == Status.OK


def test_pausing_twice_and_resuming_what_runs_do_nothing(
    backend: vu.Backend, socket_path: Path
) -> None:
    assert backend.resume()
    assert backend.pause()
    assert backend.pause()
    assert backend.resume()
    with FrontEnd.connect(str(socket_path)).start() as front:
        assert front.blk().read(0, SECTOR).status == Status.OK


class PausesItself(RamDisk):
    """A device whose callback pauses its own back-end."""

    backend: vu.Backend

    def read(self, offset: int, buf: memoryview, /) -> None:
        self.backend.pause()


def test_a_callback_may_pause_and_does_not_wait_for_itself(socket_path: Path) -> None:
    disk = PausesItself()
    with vu.Backend(disk, socket=socket_path) as backend:
        disk.backend = backend
        with FrontEnd.connect(str(socket_path)).start() as front:
            assert front.blk().read(0, SECTOR).status == Status.OK
            assert backend.is_paused
            assert backend.resume()
            assert front.blk().write(0, bytes(SECTOR)).status == Status.OK


def test_what_has_not_started_is_not_paused() -> None:
    backend = vu.Backend(RamDisk(), socket="x.sock")
    assert not backend.is_paused
    with pytest.raises(vu.VhostUserError, match="has not started"):
        backend.pause()


def test_what_has_stopped_is_paused_at_once(socket_path: Path) -> None:
    backend = vu.Backend(RamDisk(), socket=socket_path).start()
    backend.stop()
    assert backend.pause()
    assert backend.resume()
