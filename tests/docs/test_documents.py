"""What README and docs say is so: their code runs, their links lead somewhere, their tables are
those of the sources."""

import re
import shutil
from pathlib import Path

import pytest
from vhost_user.cli.exits import Exit

from . import qemu
from .document import Reader, blocks, commands, matches

PROJECT = Path(__file__).parents[2]
AT_THE_TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [*(PROJECT / name for name in AT_THE_TOP), *sorted((PROJECT / "docs").glob("*.md"))]

ELSEWHERE = {
    "docs/libvirt.md": "tests/guest/test_libvirt.py",
    "docs/no-guest.md": "tests/guest/test_no_guest.py",
}
"""Pages whose programs the suite of guests has, and the tests there that run these pages."""


def name(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if name(p) not in ELSEWHERE], ids=name)
def test_every_block_does_what_it_says(path: Path, tmp_path: Path) -> None:
    """Command lines of QEMU and DPDK are run if these are installed and new enough; their suites
    always do it.
    """
    here = tmp_path / "d"
    here.mkdir()
    found = qemu.installed()
    programs = [qemu.stand_in(tmp_path / "q", [found], None)] if found else []
    absent = [] if found else [qemu.NAME]
    if shutil.which("dpdk-testpmd") is None:
        absent.append("dpdk-testpmd")
    with Reader(here, programs=programs, absent=absent) as reader:
        for block in blocks(path.read_text()):
            reader.follow(block)
        reader.end_servers()


@pytest.mark.parametrize("page", ELSEWHERE)
def test_a_page_that_is_not_run_here_is_run_elsewhere(page: str) -> None:
    test = (PROJECT / ELSEWHERE[page]).read_text()
    assert (PROJECT / page).exists()
    assert f'"{page}"' in test
    assert "reader.follow(block)" in test


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


def test_the_command_line_page_lists_every_exit_status() -> None:
    assert [int(row[0]) for row in rows("cli.md")] == [int(status) for status in Exit]


def seconds(number: int) -> str:
    """Seconds as they stand in the sources of the core."""
    return f"Duration::from_secs({number})"


LIMITS = [
    # source, constant, its value, what the page says
    ("core/src/wire/frame.rs", "MAX_PAYLOAD", "4096", "payload of a message | 4 KiB"),
    ("core/src/wire/frame.rs", "MAX_FDS", "32", "descriptors with a message | 32"),
    ("core/src/socket/stream.rs", "DEFAULT_DEADLINE", seconds(5), "its last | 5 s"),
    ("core/src/wire/payload/region.rs", "MAX_REGIONS", "MAX_FDS", "regions | 32 in a table"),
    ("core/src/backend/offer.rs", "MEMORY_SLOTS", "509", "509 with memory slots"),
    ("core/src/memory/policy.rs", "SESSION_SHARE", "4", "mapped for a front-end | a quarter of"),
    ("core/src/memory/policy.rs", "PROCESS_SHARE", "2", "for all of a process half of"),
    ("core/src/sys/guard.rs", "SLOTS", "1 << 16", "mappings in a process | 65536"),
    ("core/src/ring/mod.rs", "MAX_CHAIN", "1024", "descriptors in a chain | 1024"),
    ("core/src/block/parse.rs", "MAX_SEGMENTS", "32", "ranges of a discard"),
    ("core/src/socket/listener.rs", "BACKLOG", "128", "in the listen queue of 128"),
    (
        "core/src/backend/session/teardown.rs",
        "DISCONNECT_DRAIN",
        "Duration::from_secs(1)",
        "front-end has left | 1 s",
    ),
    ("core/src/backend/mod.rs", "STOP_DRAIN", "Duration::from_secs(5)", "back-end stops | 5 s"),
    ("python/src/log.rs", "CAPACITY", "1024", "waiting for the log | 1024"),
    ("python/src/copy_budget.rs", "TOTAL_DEFAULT", "1 << 30", "1 GiB for the process"),
    ("python/src/copy_budget.rs", "QUEUE_KEEPS", "8 << 20", "later requests | 8 MiB for a queue"),
    ("python/src/copy_budget.rs", "TOTAL_KEEPS", "64 << 20", "for a queue, 64 MiB for the process"),
]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit[1])
def test_the_security_page_has_the_limits_of_the_core(limit: tuple[str, str, str, str]) -> None:
    source, constant, value, said = limit
    text = (PROJECT / "rust" / source).read_text()
    found = re.search(rf"\bconst {constant}: \w+ = (.*);", text)
    assert found is not None
    assert found[1] == value
    assert said in (PROJECT / "docs/security.md").read_text()


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
        "```xml\n```\n",
    ):
        (block,) = blocks(text)
        with Reader(tmp_path) as reader, pytest.raises(AssertionError):
            reader.follow(block)
