"""QEMU's disk programs and libblkio drive a disk as the page on disks without a guest says."""

from pathlib import Path

from docs.document import Reader, blocks
from docs.stand_in import stand_in

from .rig.machine import module_directory
from .rig.packages import NEWEST, Packages

PROJECT = Path(__file__).parents[2]
PAGE = "docs/no-guest.md"
RUN_WITH = (NEWEST,)


def test_the_page_on_disks_without_a_guest_does_what_it_says(
    packages: Packages, tmp_path: Path
) -> None:
    here, programs = tmp_path / "d", tmp_path / "p"
    here.mkdir()
    for name in ("qemu-img", "qemu-io", "qemu-nbd"):
        stand_in(programs, name, packages.program(f"usr/bin/{name}"), module_directory(packages))
    home = {"PYTHONHOME": str(packages.root / "usr")}
    stand_in(programs, "python3", packages.program("usr/bin/python3"), home)
    with Reader(here, programs=[programs]) as reader:
        for block in blocks((PROJECT / PAGE).read_text()):
            reader.follow(block)
        reader.end_servers()
