"""``fetch`` fills the cache before the tests run."""

from __future__ import annotations

import argparse
import sys

from rig.archive import ArchiveError

from .packages import fetch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m dpdk.rig", description=__doc__)
    parser.add_argument("command", choices=["fetch"])
    parser.parse_args()
    try:
        packages = fetch()
    except ArchiveError as error:
        print(f"dpdk: {error}", file=sys.stderr)
        return 1
    versions = f"DPDK {packages.dpdk_version}, Open vSwitch {packages.switch_version}"
    print(f"dpdk: {packages.root}: {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
