"""What the page on security promises is shown by tests that are there."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs/security.md").read_text()
PACKAGE = PROJECT / "python/vhost_user"
NAMED = re.findall(r"`([\w/]+\.(?:py|rs)::\w+)`", PAGE)

STARTS_PROGRAMS = re.compile(r"\bsubprocess\b|\bos\.(exec|spawn|posix_spawn|system|popen|fork)")


def python_tests(source: str) -> set[str]:
    """The functions of a file that pytest would take for tests."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


def rust_tests(source: str) -> set[str]:
    """The functions of a file that follow ``#[test]``, whatever else stands between."""
    found = re.findall(r"^\s*#\[test\]\n(?:\s*(?:#\[|//).*\n)*\s*fn (\w+)", source, re.MULTILINE)
    return set(found)


@pytest.mark.parametrize("named", sorted(set(NAMED)))
def test_each_test_that_is_named_exists(named: str) -> None:
    path, _, name = named.partition("::")
    source = (PROJECT / path).read_text()
    tests = python_tests(source) if path.endswith(".py") else rust_tests(source)
    assert name in tests


def tables(page: str) -> list[list[list[str]]]:
    """The rows of each table, as cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    return [[line.strip("| \n").split(" | ") for line in table.splitlines()] for table in found]


def unshown(page: str) -> list[str]:
    """First cells of rows that name no test, in tables whose last column is for tests."""
    shown = [table for table in tables(page) if table[0][-1] == "is shown by"]
    return [row[0] for _, _, *rows in shown for row in rows if "::" not in row[-1]]


def test_each_promise_names_a_test() -> None:
    headings = [table[0] for table in tables(PAGE)]
    assert ["promise", "is shown by"] in headings
    assert ["what", "limit", "is shown by"] in headings
    assert unshown(PAGE) == []


STARTERS = {"child", "captive", "demo", "health/socket_rights", "vmm/program"}
"""Files of the command that start programs: the keeper, which serves nothing; `--run`, as its
user says; the demo; and what looks at the host and the programs that it has."""


def test_nothing_starts_a_program_but_what_has_to() -> None:
    python = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    starting = {path for path, source in python.items() if STARTS_PROGRAMS.search(source)}
    assert starting == {PACKAGE / f"cli/{name}.py" for name in STARTERS}
    rust = [p for c in ("core", "python") for p in (PROJECT / "rust" / c / "src").rglob("*.rs")]
    assert rust
    assert [path for path in rust if "process::Command" in path.read_text()] == []


# The checks themselves.


def test_a_promise_without_a_test_is_seen() -> None:
    shown = "| a | is shown by |\n|---|---|\n| b | `c.rs::d` |\n| e | f |\n"
    other = "| g | h |\n|---|---|\n| i | j |\n"
    assert unshown(f"{shown}\n{other}") == ["e"]


def test_tests_are_found_in_sources() -> None:
    rust = "#[test]\nfn a() {}\nfn b() {}\n    #[test]\n    // Why.\n    #[ignore]\n    fn c() {}\n"
    assert rust_tests(rust) == {"a", "c"}
    assert python_tests("def test_a(): ...\ndef b(): ...\n") == {"test_a"}
