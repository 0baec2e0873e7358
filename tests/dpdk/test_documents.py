"""The command line of DPDK in the page on network devices is carried out by a real DPDK."""

from __future__ import annotations

import shlex
from pathlib import Path

from docs.document import Reader, blocks

from docs import qemu

from .rig.packages import Packages

PAGE = Path(__file__).parents[2] / "docs/network.md"


def test_the_driver_takes_the_documented_command_line(packages: Packages, tmp_path: Path) -> None:
    here, programs = tmp_path / "d", tmp_path / "p"
    here.mkdir()
    programs.mkdir()
    program = programs / "dpdk-testpmd"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(packages.testpmd())} "$@"\n')
    program.chmod(0o755)
    with Reader(here, programs=[programs], absent=[qemu.NAME]) as reader:
        for block in blocks(PAGE.read_text()):
            reader.follow(block)
        reader.end_servers()
