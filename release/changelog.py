"""The text of ``CHANGELOG.md``: Keep a Changelog 1.1.0."""

from __future__ import annotations

import re

from .box import BuildError

UNRELEASED = "## [Unreleased]"


def section(text: str, heading: str = UNRELEASED) -> str:
    """What stands below a heading, up to the next of its rank."""
    found = re.search(
        rf"^{re.escape(heading)}.*?$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise BuildError(f"CHANGELOG.md has no heading {heading!r}")
    return found[1].strip()


def closed(text: str, version: str, date: str) -> str:
    """The same text with all that was not released as this version's."""
    if not section(text):
        raise BuildError("CHANGELOG.md has nothing that was not released: there is nothing to tell")
    if f"## [{version}]" in text:
        raise BuildError(f"CHANGELOG.md has a version {version} already")
    return text.replace(UNRELEASED, f"{UNRELEASED}\n\n## [{version}] - {date}", 1)
