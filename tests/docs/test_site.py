"""The documentation's site has all pages and all public names; `make docs` checks its links."""

import re
from pathlib import Path

import vhost_user as vu

from website.reference import PAGES

PROJECT = Path(__file__).parents[2]
NAV = re.findall(r"^ +- ([\w/-]+\.md)$", (PROJECT / "website/mkdocs.yml").read_text(), re.MULTILINE)


def test_each_page_has_its_place() -> None:
    assert {path.name for path in (PROJECT / "docs").glob("*.md")} <= set(NAV)
    assert {f"reference/{name}.md" for name in PAGES} <= set(NAV)
    assert len(NAV) == len(set(NAV))


def test_each_public_name_is_in_the_reference() -> None:
    found = sorted(name for page in PAGES.values() for name in page.names)
    # `devices` is a module of what is there by itself.
    assert found == sorted(set(vu.__all__) - {"__version__", "devices"})
