"""Builds the source archive as a distribution does: without the network, with crates at hand.

``python3 -m release.offline ARCHIVE`` unpacks it, has cargo put the crates beside it, and builds it
with an empty cache of crates, where no network can be reached.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from . import box, source
from .box import BuildError

QUICK = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}
"""Whether everything is there does not depend on how well it is compiled."""


def build(archive: Path, stage: Path) -> Path:
    """Builds the wheel of this machine from an archive, in ``stage``."""
    tree = stage / box.SOURCE.name
    source.unpack(archive, tree)
    vendored = subprocess.run(
        ["cargo", "vendor", "--locked", "--quiet", "vendor"],
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    (tree / ".cargo").mkdir()
    (tree / ".cargo/config.toml").write_text(vendored.stdout)
    words = ["build", "--release", "--locked", "--offline", "--quiet", "--compatibility", "linux"]
    words += ["--interpreter", sys.executable, "--out", str(box.PLACE / "out")]
    box.run(stage, [*source.MATURIN, *words], QUICK, offline=True)
    (wheel,) = (stage / "out").glob("*.whl")
    return wheel


def main() -> int:
    """Ends with 1 if the archive does not build."""
    parser = argparse.ArgumentParser(prog="python3 -m release.offline", description=__doc__)
    parser.add_argument("archive", type=Path)
    archive = parser.parse_args().archive
    try:
        with tempfile.TemporaryDirectory(prefix="vhost-user-offline-") as stage:
            wheel = build(archive, Path(stage))
            print(f"{archive.name}: built without the network: {wheel.name}")
    except BuildError as error:
        print(f"offline: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
