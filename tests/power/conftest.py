"""Disks whose power may be cut; serving in this process as in the suite of devices."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from device.conftest import bench, socket_folder, warm

from .disk import VolatileDisk

__all__ = ["bench", "disk", "socket_folder", "warm"]


@pytest.fixture(params=[True, False], ids=["page cache", "disk cache"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VolatileDisk]:
    """A disk of zeroes; what is written waits in the kernel's page cache, or in its own cache."""
    volatile = VolatileDisk(tmp_path, writeback=request.param)
    yield volatile
    volatile.close()
