"""The command line of DPDK in the page on network devices is carried out by a real DPDK."""

from __future__ import annotations

from pathlib import Path

from docs.document import Reader, blocks
from docs.stand_in import stand_in

from docs import qemu

from .rig.packages import Packages

PAGE = Path(__file__).parents[2] / "docs/network.md"


def test_the_driver_takes_the_documented_command_line(packages: Packages, tmp_path: Path) -> None:
    here, programs = tmp_path / "d", tmp_path / "p"
    here.mkdir()
    stand_in(programs, "dpdk-testpmd", packages.testpmd())
    with Reader(here, programs=[programs], absent=[qemu.NAME]) as reader:
        for block in blocks(PAGE.read_text()):
            reader.follow(block)
        reader.end_servers()
