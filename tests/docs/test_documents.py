"""What README and docs say is so: their code runs, their links lead somewhere, their tables are
those of the sources."""

import re
from pathlib import Path

import pytest
from vhost_user.cli.exits import Exit

from . import qemu
from .document import Reader, blocks, commands, matches

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def name(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_block_does_what_it_says(path: Path, tmp_path: Path) -> None:
    """Command lines of QEMU are run if QEMU is installed; the guest suite always runs them."""
    here = tmp_path / "d"
    here.mkdir()
    found = qemu.installed()
    programs = [qemu.stand_in(tmp_path / "q", [found], None)] if found else []
    with Reader(here, programs=programs, qemu=bool(found)) as reader:
        for block in blocks(path.read_text()):
            reader.follow(block)
        reader.end_servers()


def anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        there = (path.parent / place).resolve() if place else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def rows(document: str) -> list[list[str]]:
    """The cells of all table rows that begin with a number."""
    lines = re.findall(r"^\| (\d+ \|.*) \|$", (PROJECT / "docs" / document).read_text(), re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def test_the_protocol_page_lists_every_message_and_feature_of_the_core() -> None:
    table = (PROJECT / "rust/core/src/wire/message.rs").read_text()
    messages = re.findall(r'^ *(\d+) \w+ +"(\w+)"', table, re.MULTILINE)
    features = (PROJECT / "rust/core/src/wire/features.rs").read_text()
    bits = re.findall(r"^        const (\w+) = 1 << (\d+);", features, re.MULTILINE)
    expected = [*messages, *((number, feature) for feature, number in bits)]
    assert [(row[0], row[1]) for row in rows("protocol.md")] == expected


def test_the_protocol_page_offers_what_the_core_offers() -> None:
    offer = (PROJECT / "rust/core/src/connection/offer.rs").read_text()
    carried_out = offer.split("CARRIED_OUT: ProtocolFeatures =")[1].split(";")[0]
    expected = set(re.findall(r"ProtocolFeatures::(\w+)", carried_out))
    offered = {row[1] for row in rows("protocol.md") if row[2].startswith("offered")}
    assert offered == expected


def test_the_protocol_page_refuses_what_the_core_refuses() -> None:
    state = (PROJECT / "rust/core/src/connection/state.rs").read_text()
    refused = state.split("M::SetLogBase")[1].split("=>")[0].replace("\n", " ")
    expected = {"SetLogBase", *re.findall(r"M::(\w+)", refused)}
    found = {row[1] for row in rows("protocol.md") if len(row) == 4 and row[2] == "refused"}
    assert {word.replace("_", "").lower() for word in found} == {n.lower() for n in expected}


def test_the_command_line_page_lists_every_exit_status() -> None:
    assert [int(row[0]) for row in rows("cli.md")] == [int(status) for status in Exit]


# The reader itself.


def test_blocks_are_found_with_their_notes() -> None:
    found = list(blocks("# A\n\n<!-- file: a.py -->\n```python\nx = 1\n```\n\n```text\n```\n"))
    assert [(b.language, b.note, b.text, b.line) for b in found] == [
        ("python", "file: a.py", "x = 1\n", 4),
        ("text", "", "", 8),
    ]


def test_commands_have_their_output_and_status() -> None:
    text = "$ true\n$ cat a \\\n    b\nno\n...\n[status 1]\n$ serve &\nready\n"
    assert [(c.words, c.expected, c.status, c.serves) for c in commands(text)] == [
        ("true", "", 0, False),
        ("cat a b", "no\n...", 1, False),
        ("serve &", "ready", 0, True),
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "agree"),
    [
        ("a\nb", "a\nb\n", True),
        ("a ... c", "a b\nb c\n", True),
        ("a ...\n...\nz", "a 1\n2\n3\nz\n", True),
        ("a", "a b", False),
        ("a  b", "a    b", True),
        ("1.5", "1x5", False),
    ],
)
def test_output_is_compared_with_gaps(expected: str, printed: str, agree: bool) -> None:
    assert matches(expected, printed) == agree


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    for text in (
        "```python\nassert False\n```\n",
        "```console\n$ false\n```\n",
        "```console\n$ echo a\nb\n```\n",
        "```console\n$ echo a &\nb\n```\n",
        "```ruby\n```\n",
    ):
        (block,) = blocks(text)
        with Reader(tmp_path, qemu=False) as reader, pytest.raises(AssertionError):
            reader.follow(block)
