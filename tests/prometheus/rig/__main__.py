"""``fetch`` fills the cache before the tests run."""

from __future__ import annotations

import argparse
import sys

from rig.archive import ArchiveError

from .packages import PACKAGE, fetch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m prometheus.rig", description=__doc__)
    parser.add_argument("command", choices=["fetch"])
    parser.parse_args()
    try:
        fetched = fetch()
    except ArchiveError as error:
        print(f"prometheus: {error}", file=sys.stderr)
        return 1
    print(f"prometheus: {fetched.root}: Prometheus {fetched.versions[PACKAGE]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
