"""``fetch`` fills the cache before the tests run."""

from __future__ import annotations

import argparse
import sys

from rig.archive import ArchiveError

from .packages import emulator, fetch

ARCHITECTURES = ("amd64", "arm64")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m xen.rig", description=__doc__)
    parser.add_argument("command", choices=["fetch"])
    parser.parse_args()
    try:
        for architecture in ARCHITECTURES:
            packages = fetch(architecture)
            emulator(architecture)
            print(f"xen: {packages.directory}: {packages.hypervisor.name}, {packages.kernel.name}")
    except ArchiveError as error:
        print(f"xen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
