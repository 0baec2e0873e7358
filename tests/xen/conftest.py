"""What stands in ``dom0`` is collected there and not here; how it went is told at the end."""

from itertools import chain, zip_longest
from pathlib import Path

import pytest

collect_ignore = ["dom0"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts a short test behind each long one: each of two workers gets two tests to begin with."""
    here = Path(__file__).parent
    places = [place for place, item in enumerate(items) if item.path.parent == here]
    ours = [items[place] for place in places]
    long = [item for item in ours if "[" in item.name]
    short = [item for item in ours if item not in long]
    mixed = filter(None, chain.from_iterable(zip_longest(long, short)))
    for place, item in zip(places, mixed, strict=True):
        items[place] = item


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows for each kind of dom0 that was booted how its tests went, and where the results are."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "dom0" and report.when == "call":
                terminalreporter.write_line(f"dom0 {value}")
