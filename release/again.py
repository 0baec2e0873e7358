"""Builds everything a second time, elsewhere, and compares.

``python3 -m release.again [--only WORD] DIRECTORY`` ends with 0 if the source archive and the
wheels of a directory come out with the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from rig.archive import ArchiveError

from .box import BuildError
from .build import build, prepare
from .kinds import kind_of


def digest(path: Path) -> str:
    """What stands for the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(directory: Path, only: str = "") -> list[str]:
    """Builds what ``directory`` has; the names of the files that come out different."""
    found = []
    with tempfile.TemporaryDirectory(prefix="vhost-user-again-") as elsewhere:
        stage, out = Path(elsewhere, "stage"), Path(elsewhere, "out")
        made = [prepare(stage, out)]
        for wheel in sorted(directory.glob("*.whl")):
            if only in wheel.name:
                made.append(build(kind_of(wheel.name), stage, out))
        for path in made:
            same = digest(path) == digest(directory / path.name)
            print(f"{path.name}: {'the same bytes' if same else 'other bytes'}", flush=True)
            found += [] if same else [path.name]
    return found


def main() -> int:
    """Ends with 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python3 -m release.again", description=__doc__)
    parser.add_argument("--only", default="", help="builds wheels whose name has this in it")
    parser.add_argument("directory", type=Path)
    told = parser.parse_args()
    try:
        return 1 if differing(told.directory.resolve(), told.only) else 0
    except (BuildError, ArchiveError) as error:
        print(f"again: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
