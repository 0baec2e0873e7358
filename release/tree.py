"""The repository's tree: whether all of it is committed, and whether its tests have passed.

``python3 -m release.tree`` notes that they have, as the last step of ``make test``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .box import BuildError

STAMP = "vhost-user-tested"
"""The file in git's own directory that names the tree which was tested."""


def git(project: Path, *words: str) -> str:
    """What git prints, without the end of its last line."""
    done = subprocess.run(
        ["git", "-C", str(project), *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


def changes(project: Path) -> list[str]:
    """The files that differ from what is committed, or are new to git."""
    lines = git(project, "status", "--porcelain").splitlines()
    return [line[3:] for line in lines]


def note_tested(project: Path) -> str | None:
    """Notes that the tests of the committed tree have passed; why not, if they were of another."""
    if names := changes(project):
        return f"{len(names)} files are not committed, as {names[0]}"
    _stamp(project).write_text(_tree(project) + "\n")
    return None


def is_tested(project: Path) -> bool:
    """Whether the tests of the committed tree have passed here."""
    stamp = _stamp(project)
    return stamp.exists() and stamp.read_text().strip() == _tree(project)


def _tree(project: Path) -> str:
    return git(project, "rev-parse", "HEAD^{tree}")


def _stamp(project: Path) -> Path:
    return project / git(project, "rev-parse", "--git-path", STAMP)


def main() -> None:
    """Notes it, where this is a clone."""
    from .source import PROJECT

    if not (PROJECT / ".git").exists():
        return
    try:
        why = note_tested(PROJECT)
    except BuildError as error:
        why = str(error)
    if why:
        print(f"this tree cannot be released yet: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
