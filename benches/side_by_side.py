"""Runs all contenders in turns and compares them by the medians of paired ratios.

Absolute figures of a shared machine mean little: one stray process halves them. So every round
measures every contender once, each ratio is taken within a round, and the order of the rounds
alternates. `python -m benches.side_by_side --help`.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benches.contender import CONTENDERS, Load, Result, measure, missing_packages

Rounds = dict[str, list[Result]]


@dataclass(frozen=True)
class Mark:
    """A goal: the ratio of a figure of two contenders, at least or at most `limit`."""

    name: str
    figure: str
    ours: str
    theirs: str
    limit: float
    at_least: bool

    def ratios(self, rounds: Rounds) -> list[float]:
        pairs = zip(rounds[self.ours], rounds[self.theirs], strict=True)
        return [getattr(a, self.figure) / getattr(b, self.figure) for a, b in pairs]

    def holds(self, rounds: Rounds) -> bool:
        median = statistics.median(self.ratios(rounds))
        return median >= self.limit if self.at_least else median <= self.limit

    def line(self, rounds: Rounds) -> str:
        ratios = self.ratios(rounds)
        sign = ">=" if self.at_least else "<="
        verdict = "holds" if self.holds(rounds) else "MISSED"
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        median = statistics.median(ratios)
        return f"{self.name:58} {median:7.2f}  ({spread})  {sign} {self.limit}  {verdict}"


MARKS = (
    Mark(
        "Python per request : nbdkit's Python plugin, IOPS",
        "iops",
        "per-request",
        "nbdkit",
        15.0,
        True,
    ),
    Mark(
        "Python per batch : Python per request, IOPS", "iops", "on_batch", "per-request", 1.5, True
    ),
    Mark(
        "FileDisk : qemu-storage-daemon threads, CPU a request",
        "cpu_us",
        "file",
        "qsd-file",
        0.6,
        False,
    ),
    Mark(
        "FileDisk : qemu-storage-daemon io_uring, CPU a request",
        "cpu_us",
        "file",
        "qsd-uring",
        0.6,
        False,
    ),
    Mark(
        "null : qemu-storage-daemon null-co, CPU a request",
        "cpu_us",
        "null",
        "qsd-null",
        0.6,
        False,
    ),
)


def run(load: Load, rounds: int, names: list[str], folder: Path, image: Path) -> Rounds:
    """Measures each contender once a round, the order turned each time."""
    results: Rounds = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            result = measure(CONTENDERS[name], load, folder, image)
            results[name].append(result)
            print(
                f"  {load.name}, round {number + 1}: {name} {result.iops:,.0f} IOPS",
                file=sys.stderr,
            )
    return results


def table(load: Load, rounds: Rounds) -> str:
    lines = [
        f"{load.name}, 4 KiB random reads, medians of {len(next(iter(rounds.values())))} rounds"
    ]
    lines.append(f"{'':40} {'IOPS':>12} {'CPU us':>8} {'p50 us':>8} {'p99 us':>8}")
    for name, results in rounds.items():

        def median(figure: str, results: list[Result] = results) -> float:
            return float(statistics.median(getattr(r, figure) for r in results))

        lines.append(
            f"{CONTENDERS[name].name:40} {median('iops'):12,.0f} {median('cpu_us'):8.2f}"
            f" {median('p50_us'):8.1f} {median('p99_us'):8.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--size", type=int, default=256 << 20, help="bytes of the disk")
    parser.add_argument("--only", nargs="*", choices=sorted(CONTENDERS), help="contenders")
    parser.add_argument("--depth", type=int, nargs="*", default=[32, 1])
    parser.add_argument("--output", type=Path, default=Path("bench-results/side-by-side.json"))
    options = parser.parse_args()
    if packages := missing_packages():
        raise SystemExit(f"make bench needs Debian's packages {' '.join(packages)}")
    names = options.only or list(CONTENDERS)
    loads = [
        Load(depth, options.seconds, polls) for depth in options.depth for polls in (True, False)
    ]
    report: dict[str, object] = {"machine": platform.platform(), "cpus": os.cpu_count()}
    missed = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        image = Path(folder) / "disk.img"
        with image.open("wb") as file:
            file.truncate(options.size)
        for load in loads:
            rounds = run(load, options.rounds, names, Path(folder), image)
            print(table(load, rounds), end="\n\n")
            report[load.name] = {name: [asdict(r) for r in rs] for name, rs in rounds.items()}
            marks = [
                m for m in MARKS if load.depth == 32 and m.ours in rounds and m.theirs in rounds
            ]
            for mark in marks:
                print(mark.line(rounds))
            missed += sum(not mark.holds(rounds) for mark in marks)
            print(flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
