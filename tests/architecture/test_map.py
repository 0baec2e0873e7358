"""The list of files in docs/architecture.md is that of the sources."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs/architecture.md"
CRATES = ("rust/core/src", "rust/python/src")


def listed(page: str, crate: str) -> list[str]:
    """The paths in the first column of the table below the heading of ``crate``."""
    _, _, section = page.partition(f"### `{crate}`\n")
    section, _, _ = section.partition("\n#")
    firsts = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return [path for first in firsts for path in re.findall(r"`([^`]+)`", first)]


def is_source(path: str) -> bool:
    """Whether a file is to be listed: it holds more than declarations, and no tests alone."""
    *folders, name = path.split("/")
    declares = name in ("lib.rs", "mod.rs")
    return not declares and not name.endswith("_tests.rs") and "tests" not in folders


def sources(crate: str) -> Iterator[str]:
    folder = PROJECT / crate
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.rs")))
    return filter(is_source, paths)


def missing(paths: list[str], sources: list[str]) -> list[str]:
    """Sources that no path names: neither their own nor that of a folder, which ends in a slash."""
    folders = tuple(path for path in paths if path.endswith("/"))
    return [source for source in sources if source not in paths and not source.startswith(folders)]


@pytest.mark.parametrize("crate", CRATES)
def test_every_path_of_the_list_exists(crate: str) -> None:
    paths = listed(PAGE.read_text(), crate)
    assert len(paths) > 10
    for path in paths:
        place = PROJECT / crate / path
        assert place.is_dir() if path.endswith("/") else place.is_file(), path


@pytest.mark.parametrize("crate", CRATES)
def test_every_source_file_is_in_the_list_once(crate: str) -> None:
    paths = listed(PAGE.read_text(), crate)
    assert missing(paths, list(sources(crate))) == []
    assert sorted(set(paths)) == sorted(paths)


def test_every_file_that_the_decisions_name_exists() -> None:
    _, _, decisions = PAGE.read_text().partition("## Decisions")
    named = re.findall(r"`([\w/]+\.rs)`", decisions)
    assert named
    for path in named:
        assert any((PROJECT / crate / path).is_file() for crate in CRATES), path


# The check itself.


def test_a_file_that_is_not_listed_is_seen() -> None:
    page = "### `a`\n\n| file | |\n|---|---|\n| `b.rs`, `c/` | `x.rs` |\n\n### `d`\n| `e.rs` | |\n"
    paths = listed(page, "a")
    assert paths == ["b.rs", "c/"]
    assert missing(paths, ["b.rs", "c/f.rs", "x.rs", "cc.rs"]) == ["x.rs", "cc.rs"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ring/split.rs", True),
        ("ring/mod.rs", False),
        ("lib.rs", False),
        ("frontend/split_tests.rs", False),
        ("block/tests/space.rs", False),
    ],
)
def test_declarations_and_tests_are_not_listed(path: str, expected: bool) -> None:
    assert is_source(path) == expected
