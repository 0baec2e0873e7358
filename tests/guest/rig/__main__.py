"""``fetch`` fills the cache before the tests run; ``record`` prints a conversation as JSON."""

from __future__ import annotations

import argparse
import sys

from rig.archive import ArchiveError

from .packages import MIDDLE, NEWEST, OLDEST, SUITES, Packages, fetch
from .record import PROTOCOL_FEATURES, dump, record

SHOWN = ("qemu-system-x86", "busybox-static", "e2fsprogs", "libblkio1", "libvirt-daemon", "ovmf")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m guest.rig", description=__doc__)
    parser.add_argument("command", choices=["fetch", "record"])
    parser.add_argument("--suite", choices=SUITES, help="fetch: the three that are tested")
    parser.add_argument("--features", choices=PROTOCOL_FEATURES, default="all")
    arguments = parser.parse_args()
    try:
        if arguments.command == "record":
            packages = fetch(arguments.suite or OLDEST)
            sys.stdout.write(dump(record(packages, arguments.features)))
            return 0
        for suite in [arguments.suite] if arguments.suite else (OLDEST, MIDDLE, NEWEST):
            print(f"guest: {_contents(fetch(suite))}")
    except ArchiveError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    return 0


def _contents(packages: Packages) -> str:
    shown = [name for name in SHOWN if name in packages.versions]
    versions = ", ".join(f"{name} {packages.versions[name]}" for name in shown)
    return f"{packages.root}: linux {packages.kernel_release}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
