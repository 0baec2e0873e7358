"""What a test that failed shows of the programs that it ran."""

from typing import Protocol

import pytest


class Program(Protocol):
    """A program under test that keeps what it printed."""

    def report(self) -> str: ...


SHOWN = pytest.StashKey[list[tuple[str, Program]]]()


def show(item: pytest.Item, kind: str, program: Program) -> None:
    """Has the report of ``program``, which is a ``kind``, shown if the test fails."""
    item.stash.setdefault(SHOWN, []).append((kind, program))


def sections(item: pytest.Item) -> list[tuple[str, str]]:
    """What is to be shown of a test that failed: titles and texts."""
    return [
        (f"{kind} of {item.name}", program.report()) for kind, program in item.stash.get(SHOWN, [])
    ]
