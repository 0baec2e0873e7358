"""An image to serve, and the commands that serve it."""

import sys
from pathlib import Path

import pytest
from peer.shuffling import SHUFFLING
from peer.writes import BYTES, SLOTS, Load

from .held import COMMAND

IMAGE = "disk.img"

BACK_ENDS = {
    "blk": [*COMMAND, "blk", IMAGE],
    "shuffling": [sys.executable, "-c", f"{SHUFFLING}vu.serve(Shuffling())"],
}
"""What finds its socket as a service manager hands one down."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image of zeroes."""
    (tmp_path / IMAGE).write_bytes(bytes(1 << 20))
    return tmp_path


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> list[str]:
    """A command for each kind of back-end: one in Rust, and one that answers in any order."""
    return BACK_ENDS[request.param]


def assert_written(folder: Path, load: Load) -> None:
    """The image has what was written last."""
    image = (folder / IMAGE).read_bytes()
    for slot in range(SLOTS):
        assert image[slot * BYTES :][:BYTES] == load.data(slot), f"slot {slot} is not as written"
