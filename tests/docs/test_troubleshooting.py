"""The page on errors has the texts that the sources have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs/troubleshooting.md").read_text()
FOLDERS = ("rust/core/src", "rust/python/src", "python/vhost_user")

EXAMPLE = re.compile(r"\.\.\.|\S*\d\S*|\S*\.(?:sock|img|py)\b\S*|`")
"""What stands for a reader's own numbers and names."""


def quoted(page: str) -> Iterator[str]:
    """The texts by which an error is looked up: in headings, but for QEMU's own, and in the first
    column of tables."""
    for line in re.findall(r"^(?:### (?!QEMU)|\| `).*$", page, re.MULTILINE):
        cell = line.removeprefix("### ") if line.startswith("#") else line.split(" | ")[0]
        yield from re.findall(r"`(.+?)`(?=,| |$|\))", cell)


RUST = re.compile(r"""//[^\n]*|'(?:[^'\\]|\\.)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL)
"""A comment, a character or a string, whichever comes first: only the last has a group."""


def of_rust(source: str) -> Iterator[str]:
    """The strings of a file of Rust, each in one piece. What is put into one is a gap."""
    for literal in RUST.findall(source):
        text = re.sub(r"\\\n\s*", "", literal).replace('\\"', '"')
        yield re.sub(r"\{[^{}]*\}", GAP, text)


def of_python(source: str) -> Iterator[str]:
    """The same of a file of Python, where texts that nobody uses are documentation."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else GAP for v in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def unknown(text: str, known: str) -> str:
    """What is left of a text when all that stands in ``known`` is taken out, piece by piece."""
    left, at = "", 0
    while at < len(text):
        end = at
        while end < len(text) and text[at : end + 1] in known:
            end += 1
        if end - at < PIECE:
            left += text[at]
            end = at + 1
        at = end
    return left


PIECE = 10
"""The fewest characters in a row that are no accident."""

SPARE = 16
"""Characters that may stand in no source: names of classes and options, and words between gaps."""

GAP = "\0"
PRINTED = "\n".join(
    literal
    for folder in FOLDERS
    for suffix, read in (("rs", of_rust), ("py", of_python))
    for path in sorted((PROJECT / folder).rglob(f"*.{suffix}"))
    for literal in read(path.read_text())
)


@pytest.mark.parametrize("text", sorted(set(quoted(PAGE))))
def test_each_text_is_one_of_the_sources(text: str) -> None:
    fixed = EXAMPLE.sub("", text)
    left = unknown(fixed, PRINTED)
    assert len(left) <= max(len(fixed) / 3, SPARE), left


# The check itself.


def test_a_text_is_found_piece_by_piece() -> None:
    source = """'"' // "not this\nwrite!(f, "queue {queue}: {n} requests did not \\\n  come")"""
    known = "\n".join(of_rust(source))
    assert "not this" not in known
    assert unknown("queue : requests did not come", known) == "queue :"
    assert unknown("queue : requests were held", known).endswith("were held")


def test_texts_are_found_in_headings_and_tables() -> None:
    page = "### `a b`, `c`\n### QEMU: `d`\ntext `e`\n| `f` | `g` |\n"
    assert list(quoted(page)) == ["a b", "c", "f"]


def test_a_text_of_former_versions_is_seen() -> None:
    text = EXAMPLE.sub("", "queue 0: memory table has too many entries")
    assert len(unknown(text, PRINTED)) > max(len(text) / 3, SPARE)
