"""The RAM disk of the examples, as the tests use it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import vhost_user as vu

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ramdisk.py"
DISK_BYTES = 64 << 20
SECTOR_BYTES = 512

if TYPE_CHECKING:

    class RamDisk(vu.BlockDevice):
        """What the example is, for the type checker: at run time it is loaded from its file."""

        mem: memoryview

        def __init__(self, size: int) -> None: ...

else:
    RamDisk = runpy.run_path(str(EXAMPLE))["RamDisk"]
