"""What a running QEMU was seen to send, played to this back-end: see `tests/vectors`."""

from pathlib import Path

import pytest
from hostile.server import Server

from .replay import Replay

RECORDINGS = sorted((Path(__file__).parent.parent / "vectors").glob("*.json"))


def test_there_are_recordings() -> None:
    assert {path.stem for path in RECORDINGS} >= {"qemu-7.2-blk", "qemu-10.0-blk"}


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_recorded_front_end_is_served(server: Server, recording: Path) -> None:
    """Set-up, stop and start of the virtual machine, its reboot, memory that comes and goes, the
    driver unbound and bound again, and a back-end that is lost and found."""
    replay = Replay(server)
    replay.play(recording)
    assert replay.answered > 15
    assert replay.requests > 20
