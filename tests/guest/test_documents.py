"""The command lines of QEMU in README and docs are read by a real QEMU, which connects to the
back-ends that the document has started. No guest is booted."""

from pathlib import Path

import pytest
from docs.document import Reader, blocks
from docs.qemu import stand_in

from .rig.machine import environment
from .rig.packages import FIRMWARE_DIRECTORIES, NEWEST, Packages

PROJECT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/start.md", "docs/network.md"]
ABSENT = ["dpdk-testpmd"]
RUN_WITH = (NEWEST,)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_qemu_takes_the_documented_command_lines(
    name: str, packages: Packages, tmp_path: Path
) -> None:
    here = tmp_path / "d"
    here.mkdir()
    command = packages.program("usr/bin/qemu-system-x86_64")
    for directory in FIRMWARE_DIRECTORIES:
        command += ["-L", str(packages.root / directory)]
    programs = [stand_in(tmp_path / "q", command, environment(packages))]
    with Reader(here, programs=programs, absent=ABSENT) as reader:
        for block in blocks((PROJECT / name).read_text()):
            reader.follow(block)
        reader.end_servers()
