"""Runs all contenders in turns and compares them by the medians of paired ratios and differences.

Absolute figures of a shared machine mean little: one stray process halves them. So every round
measures each contender once, a ratio is taken within a round, and the order turns from round to
round. Exit status 1: a mark was missed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benches.contender import CONTENDERS, Contender, Load, built_before, missing_packages
from benches.mark import MARKS, Rounds

#: The depth at which the marks are set, for a driver that polls: one that sleeps is the bottleneck
#: itself, and its figures are shown without a verdict.
MARKED_DEPTH = 32


def main() -> int:
    """Runs the bench."""
    options = parse()
    if packages := missing_packages():
        raise SystemExit(f"the bench needs Debian's packages {' '.join(packages)}")
    loads = [
        Load(depth, options.seconds, poll) for depth in options.depth for poll in (True, False)
    ]
    contenders = {name: CONTENDERS[name] for name in options.only}
    if options.before is not None:
        contenders |= built_before(options.before)
    report: dict[str, object] = {"machine": platform.platform(), "processors": os.cpu_count()}
    missed = 0
    for load in loads:
        rounds = run(load, options.rounds, contenders)
        print(table(load, contenders, rounds))
        report[load.name] = {name: [asdict(r) for r in results] for name, results in rounds.items()}
        if load.depth == MARKED_DEPTH and load.polling:
            missed += judge(rounds)
        print(flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1))
    return 1 if missed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--before", type=Path, help="a virtual environment that has another build of the package"
    )
    parser.add_argument("--depth", type=int, nargs="+", default=[MARKED_DEPTH, 1])
    parser.add_argument("--output", type=Path, default=Path("bench-results/side-by-side.json"))
    return parser.parse_args()


def run(load: Load, count: int, contenders: dict[str, Contender]) -> Rounds:
    """Measures each contender once a round."""
    rounds: Rounds = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for number in range(count):
            for name in contenders if number % 2 == 0 else reversed(contenders):
                result = contenders[name].measure(load, Path(folder))
                rounds[name].append(result)
                progress = f"{load.name}, round {number + 1}: {name}, {result.iops:,.0f} IOPS"
                print(progress, file=sys.stderr)
    return rounds


def table(load: Load, contenders: dict[str, Contender], rounds: Rounds) -> str:
    """The medians of each contender."""
    count = len(next(iter(rounds.values())))
    lines = [
        f"{load.name}, random reads of 4 KiB, medians of {count} rounds",
        f"{'':38} {'IOPS':>12} {'CPU us':>8} {'p50 us':>8} {'p99 us':>8}",
    ]
    for name, results in rounds.items():
        iops, cpu, p50, p99 = (
            statistics.median(getattr(result, figure) for result in results)
            for figure in ("iops", "cpu_us", "p50_us", "p99_us")
        )
        title = contenders[name].name
        lines.append(f"{title:38} {iops:12,.0f} {cpu:8.2f} {p50:8.1f} {p99:8.1f}")
    return "\n".join(lines)


def judge(rounds: Rounds) -> int:
    """Prints the marks whose contenders were measured; returns how many were missed."""
    marks = [mark for mark in MARKS if mark.ours in rounds and mark.theirs in rounds]
    for mark in marks:
        print(mark.line(rounds))
    return sum(not mark.holds(rounds) for mark in marks)


if __name__ == "__main__":
    sys.exit(main())
