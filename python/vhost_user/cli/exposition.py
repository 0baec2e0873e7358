"""Metrics in Prometheus's text format, read back."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Samples: TypeAlias = dict[str, list[tuple[dict[str, str], float]]]

_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse(text: str) -> Samples:
    """The labels and the value of each sample, by its name."""
    samples: Samples = defaultdict(list)
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            labels = {label[1]: label[2] for label in _LABEL.finditer(found[2] or "")}
            samples[found[1]].append((labels, float(found[3])))
    return samples


def total(samples: Samples, name: str, labels: Mapping[str, str]) -> float:
    """The sum of the samples of a name that have these labels, whatever else they have."""
    return sum(value for of, value in samples.get(name, []) if labels.items() <= of.items())


def buckets(samples: Samples, name: str, labels: Mapping[str, str]) -> dict[float, float]:
    """The buckets of all histograms with these labels together, by their bounds."""
    found: dict[float, float] = defaultdict(float)
    for of, value in samples.get(name, []):
        if labels.items() <= of.items():
            found[float(of["le"])] += value
    return found


def quantile(cumulative: Sequence[tuple[float, float]], q: float) -> float | None:
    """The value that the part ``q`` does not exceed, of counts up to growing bounds; None of
    none."""
    count = cumulative[-1][1] if cumulative else 0.0
    if count <= 0:
        return None
    rank, lower, before = q * count, 0.0, 0.0
    for bound, up_to in cumulative:
        if up_to >= rank and up_to > before:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - before) / (up_to - before)
        lower, before = bound, up_to
    return lower
