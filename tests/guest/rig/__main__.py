"""``fetch`` fills the cache before the tests run; ``record`` prints a conversation as JSON."""

from __future__ import annotations

import argparse
import sys

from rig.archive import ArchiveError

from .packages import SUITES, fetch
from .record import PROTOCOL_FEATURES, dump, record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m guest.rig", description=__doc__)
    parser.add_argument("command", choices=["fetch", "record"])
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--features", choices=PROTOCOL_FEATURES, default="all")
    arguments = parser.parse_args()
    try:
        packages = fetch(arguments.suite)
    except ArchiveError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    if arguments.command == "record":
        sys.stdout.write(dump(record(packages, arguments.features)))
        return 0
    shown = ("qemu-system-x86", "busybox-static", "e2fsprogs")
    print(f"guest: {packages.root}: linux {packages.kernel_release},", end=" ")
    print(", ".join(f"{name} {packages.versions[name]}" for name in shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
