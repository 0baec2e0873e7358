"""The next version: its number, its part of the changelog, its commit and its tag.

``python3 -m release.prepare major|minor|patch|X.Y.Z`` does it, in a tree that is committed and
whose tests have passed. Nothing leaves this machine: what is to be pushed is printed.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from pathlib import Path

from . import changelog, tree
from .box import BuildError

LOCKS = ("Cargo.lock", "tests/peers/std/Cargo.lock", "tests/peers/xen/Cargo.lock")
"""Files in which cargo has the version of the package's own crates."""

PACKAGE = "python/vhost_user/__init__.py"
"""Has the version as well, since nothing is loaded to tell it."""

PARTS = ("major", "minor", "patch")


def next_version(present: str, wanted: str) -> str:
    """The number that ``wanted`` names, a part that grows by one or the number itself."""
    numbers = _numbers(present)
    if wanted in PARTS:
        at = PARTS.index(wanted)
        numbers[at:] = [numbers[at] + 1] + [0] * (2 - at)
        return ".".join(map(str, numbers))
    if _numbers(wanted) <= numbers:
        raise BuildError(f"version {wanted} does not come after {present}")
    return wanted


def _numbers(version: str) -> list[int]:
    if not re.fullmatch(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}", version):
        raise BuildError(f"{version!r} is none of {', '.join(PARTS)}, nor a version as 1.2.3")
    return list(map(int, version.split(".")))


def line_with(text: str, name: str, present: str, version: str) -> str:
    """A file with another version in the one line that gives it to ``name``."""
    line = f'{name} = "{present}"'
    if text.splitlines().count(line) != 1:
        raise BuildError(f"there is not one line {line} where there should be")
    return text.replace(f"\n{line}\n", f'\n{name} = "{version}"\n')


def lock_with(text: str, present: str, version: str) -> str:
    """A ``Cargo.lock`` with another version of the package's own crates."""
    own = re.compile(rf'(name = "vhost-user-(?:core|python)"\nversion = "){re.escape(present)}"')
    return own.sub(rf'\g<1>{version}"', text)


def present_version(project: Path) -> str:
    """The version in ``Cargo.toml``."""
    found = re.search(r'^version = "(.*)"$', (project / "Cargo.toml").read_text(), re.MULTILINE)
    if found is None:
        raise BuildError("Cargo.toml has no version")
    return found[1]


def check(project: Path) -> None:
    """Refuses a tree of which nobody knows what it is."""
    if names := tree.changes(project):
        raise BuildError(f"{len(names)} files are not committed, as {names[0]}: commit them first")
    if not tree.is_tested(project):
        raise BuildError("the tests of this tree have not passed here: run make test first")


def prepare(project: Path, wanted: str, date: str) -> str:
    """Commits and tags the next version; its number."""
    check(project)
    present = present_version(project)
    version = next_version(present, wanted)
    manifest, package = _read(project, "Cargo.toml"), _read(project, PACKAGE)
    texts = {"Cargo.toml": line_with(manifest, "version", present, version)}
    texts[PACKAGE] = line_with(package, "__version__", present, version)
    texts |= {name: lock_with(_read(project, name), present, version) for name in LOCKS}
    texts["CHANGELOG.md"] = changelog.closed(_read(project, "CHANGELOG.md"), version, date)
    if tree.git(project, "tag", "--list", f"v{version}"):
        raise BuildError(f"there is a tag v{version} already")
    for name, text in texts.items():
        (project / name).write_text(text)
    tree.git(project, "commit", "--quiet", "--all", "--message", f"release: {version}")
    told = changelog.section(texts["CHANGELOG.md"], f"## [{version}]")
    # Lines that begin with # are headings, and not comments.
    words = ["--annotate", "--cleanup=whitespace", f"--message=vhost-user {version}\n\n{told}"]
    tree.git(project, "tag", *words, f"v{version}")
    return version


def _read(project: Path, name: str) -> str:
    return (project / name).read_text()


def main() -> None:
    """Runs the command."""
    from .source import PROJECT

    parser = argparse.ArgumentParser(prog="python3 -m release.prepare", description=__doc__)
    parser.add_argument("next", metavar="NEXT", help="major, minor, patch, or the version itself")
    wanted = parser.parse_args().next
    try:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        version = prepare(PROJECT, wanted, today)
    except BuildError as error:
        sys.exit(f"no release: {error}")
    print(f"version {version} is committed and tagged; `git show v{version}` shows it")
    print("next: make wheels test-wheels, then git push --follow-tags and twine upload dist/*")


if __name__ == "__main__":
    main()
