"""What it costs to reach a guest's page, in one run: ``python3 -m xen.dom0.costs``.

Emulation makes all of it slow, and each kind of work by another factor: the figures compare with
each other on one machine, and a call with another call better than a call with a copy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from .gntdev import Granted, Piece, copy, segments_into
from .guest import FRAMES, Guest
from .ioctl import PAGE, device
from .privcmd import map_frames

BATCHES = (1, 4, 16, 128)
FIRST = 16
ROUNDS = 5
SAMPLE_PAGES = 64
"""A sample of few pages at once repeats them, as one call alone is too short to time."""


class Cost(NamedTuple):
    """Microseconds for a page that is reached and copied out, with ``pages`` in one go."""

    way: str
    pages: int
    microseconds: float


def main() -> None:
    with Guest() as guest:
        for place in range(max(BATCHES)):
            guest.grants.grant(FIRST + place, FRAMES[place])
        print(table(measure(guest)))


def measure(guest: Guest) -> list[Cost]:
    """Every way with every batch, in turns, and the median of the rounds."""
    ways = _ways(guest)
    samples: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            for pages in BATCHES:
                samples.setdefault((name, pages), []).append(_seconds(way, pages) / pages)
    return [Cost(name, pages, median(took) * 1e6) for (name, pages), took in samples.items()]


def table(costs: list[Cost]) -> str:
    """The costs as a table in Markdown; the ratio is that to plain memory with as many pages."""
    plain = {cost.pages: cost.microseconds for cost in costs if cost.way == PLAIN}
    lines = ["| way | pages at once | µs a page | against plain memory |", "|---|---|---|---|"]
    for way, pages, microseconds in costs:
        ratio = microseconds / plain[pages]
        lines.append(f"| {way} | {pages} | {microseconds:.1f} | {ratio:.1f} |")
    return "\n".join(lines)


PLAIN = "plain memory, copied"


def _ways(guest: Guest) -> dict[str, Callable[[int], object]]:
    """Each gets the number of pages, and copies all of them out."""
    gntdev, domain = device("gntdev"), guest.domain
    plain = bytearray(os.urandom(max(BATCHES) * PAGE))
    local = bytearray(max(BATCHES) * PAGE)
    whole_pages = [Piece(FIRST + place, 0, PAGE) for place in range(max(BATCHES))]
    segments = {n: segments_into(local, domain, whole_pages[:n]) for n in BATCHES}
    foreign = guest.map(FRAMES[: max(BATCHES)])
    kept = Granted(gntdev, domain, range(FIRST, FIRST + max(BATCHES)))

    def map_each(pages: int) -> None:
        for place in range(pages):
            with Granted(gntdev, domain, [FIRST + place]) as area:
                area[:PAGE]

    def map_batch(pages: int) -> None:
        with Granted(gntdev, domain, range(FIRST, FIRST + pages)) as area:
            area[: pages * PAGE]

    def copy_batch(pages: int) -> bytearray:
        copy(gntdev, segments[pages])
        return local

    def map_foreign(pages: int) -> None:
        with map_frames(guest.privcmd, domain, FRAMES[:pages]) as area:
            area[: pages * PAGE]

    return {
        PLAIN: lambda pages: plain[: pages * PAGE],
        "foreign mapping, kept": lambda pages: foreign[: pages * PAGE],
        "grant mapping, kept": lambda pages: kept.area[: pages * PAGE],
        "grant copy, one call": copy_batch,
        "grants mapped and unmapped, one call": map_batch,
        "grants mapped and unmapped, a call each": map_each,
        "foreign, mapped and unmapped, one call": map_foreign,
    }


def _seconds(way: Callable[[int], object], pages: int) -> float:
    repeats = max(1, SAMPLE_PAGES // pages)
    start = time.perf_counter()
    for _ in range(repeats):
        way(pages)
    return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    main()
