"""Testing a device with no virtual machine: a real front-end in the same process.

With pytest, the fixture ``vhost_blk`` is there without an import::

    def test_round_trip(vhost_blk: vu.testing.BlkFactory) -> None:
        disk = vhost_blk(RamDisk(1 << 20))
        disk.pwrite(b"x" * 4096, 8192)
        assert disk.pread(4096, 8192) == b"x" * 4096

Without pytest, ``with vu.testing.blk(RamDisk(1 << 20)) as disk``.

Both take ``guest=vu.testing.XenGuest("grant")``: the same on Xen, without Xen.
"""

from .blk import BlkFactory as BlkFactory
from .blk import TestedDisk as TestedDisk
from .blk import blk as blk
from .xen import XenGuest as XenGuest

__all__ = ["BlkFactory", "TestedDisk", "XenGuest", "blk"]
