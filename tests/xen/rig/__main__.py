"""``fetch`` fills the cache before the tests run: with what they boot, or with ``all`` kinds."""

from __future__ import annotations

import argparse
import sys

from rig.archive import ArchiveError

from .machine import KINDS, MORE_KINDS
from .packages import emulator, fetch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m xen.rig", description=__doc__)
    parser.add_argument("command", choices=["fetch"])
    parser.add_argument("which", choices=["all"], nargs="?")
    kinds = KINDS + (MORE_KINDS if parser.parse_args().which else ())
    try:
        for release, architecture in dict.fromkeys((k.release, k.architecture) for k in kinds):
            packages = fetch(release, architecture)
            emulator(architecture)
            linux = packages.module_directory.parent.name
            print(f"xen: {packages.directory}: {packages.hypervisor.name}, Linux {linux}")
    except ArchiveError as error:
        print(f"xen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
