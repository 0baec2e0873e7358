"""What mkdocs asks while it makes the site: pages from outside of ``docs``, and where links lead.

The pages are written for readers of the repository. On the site a link to another page leads there,
and one to a source file, which the site does not have, is its text alone.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from website.reference import PAGES  # noqa: E402

FROM_THE_TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}
"""Pages of the project's own directory, and what they are called on the site."""

LOG = logging.getLogger("mkdocs.hooks.pages")
"""A warning there ends a strict build."""

LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Headings have the anchors that the repository's pages use."""
    config.mdx_configs["toc"]["slugify"] = anchor
    return config


def anchor(heading: str, separator: str) -> str:
    """The anchor of a heading, as forges make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)


def on_files(files: Files, config: Any) -> Files:
    """Adds what is not in ``docs``."""
    for source, name in FROM_THE_TOP.items():
        files.append(File.generated(config, name, content=(PROJECT / source).read_text()))
    for name, page in PAGES.items():
        made = File.generated(config, f"reference/{name}.md", content=page.markdown())
        files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Has links lead to pages of the site."""
    sources = {name: source for source, name in FROM_THE_TOP.items()}
    here = page.file.src_uri
    place = posixpath.dirname(sources.get(here, f"docs/{here}"))
    known = {file.src_uri for file in files}

    def led(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, hash_, fragment = target.partition("#")
        wanted = posixpath.normpath(posixpath.join(place, path))
        name = FROM_THE_TOP.get(wanted, wanted.removeprefix("docs/"))
        if name not in known:
            if not (PROJECT / wanted).exists():
                LOG.warning("%s: there is no %s", here, wanted)
            return text
        away = posixpath.relpath(name, posixpath.dirname(here) or ".")
        return f"[{text}]({away}{hash_}{fragment})"

    return LINK.sub(led, markdown)
