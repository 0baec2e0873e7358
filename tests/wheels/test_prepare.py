"""The next version is prepared in a clone by real git, or refused with nothing changed."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from release import prepare, tree
from release.box import BuildError
from release.source import PROJECT

SKELETON = "python/vhost_user/cli/skeletons/common.py"
"""Has the first version of a user's package."""

MANIFEST = '[workspace]\n\n[workspace.package]\nversion = "0.9.4"\nrust-version = "1.88"\n'
LOCK = """\
[[package]]
name = "bitflags"
version = "0.9.4"

[[package]]
name = "vhost-user-core"
version = "0.9.4"
"""
CHANGELOG = """\
# Changelog

## [Unreleased]

### Added

- A disk.

## [0.9.4] - 2026-01-31

### Fixed

- A queue.
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed tree whose tests have passed."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Maintainer")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "maintainer@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    (tmp_path / "Cargo.toml").write_text(MANIFEST)
    (tmp_path / prepare.PACKAGE).parent.mkdir(parents=True)
    (tmp_path / prepare.PACKAGE).write_text('"""Devices."""\n\n__version__ = "0.9.4"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    for name in prepare.LOCKS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LOCK)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    commit(tmp_path)
    assert tree.note_tested(tmp_path) is None
    return tmp_path


def commit(project: Path) -> None:
    tree.git(project, "add", "--all")
    tree.git(project, "commit", "--quiet", "--message", "tree: begun")


def refused(project: Path, wanted: str = "minor") -> str:
    """Why no release is made, which leaves all as it was."""
    before = tree.git(project, "rev-parse", "HEAD"), tree.changes(project)
    with pytest.raises(BuildError) as why:
        prepare.prepare(project, wanted, "2026-02-28")
    assert (tree.git(project, "rev-parse", "HEAD"), tree.changes(project)) == before
    assert tree.git(project, "tag") == ""
    return str(why.value)


def test_number_changelog_commit_and_tag_tell_the_same(project: Path) -> None:
    assert prepare.prepare(project, "minor", "2026-02-28") == "0.10.0"
    manifest = tomllib.loads((project / "Cargo.toml").read_text())
    assert manifest["workspace"]["package"] == {"version": "0.10.0", "rust-version": "1.88"}
    assert (project / prepare.PACKAGE).read_text().endswith('\n__version__ = "0.10.0"\n')
    for name in prepare.LOCKS:
        packages = tomllib.loads((project / name).read_text())["package"]
        assert [p["version"] for p in packages] == ["0.9.4", "0.10.0"]
    assert (
        "\n## [Unreleased]\n\n## [0.10.0] - 2026-02-28\n\n### Added\n\n- A disk.\n\n## [0.9.4]"
        in (project / "CHANGELOG.md").read_text()
    )
    assert tree.changes(project) == []
    assert tree.git(project, "log", "-1", "--format=%s") == "release: 0.10.0"
    message = tree.git(project, "tag", "--list", "--format=%(contents)", "v0.10.0").strip()
    assert message == "vhost-user 0.10.0\n\n### Added\n\n- A disk."
    assert tree.git(project, "rev-parse", "v0.10.0^{commit}") == tree.git(
        project, "rev-parse", "HEAD"
    )


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="an archive unpacked has no git")
def test_no_other_file_of_this_project_has_the_version() -> None:
    version = re.escape(prepare.present_version(PROJECT))
    names = tree.git(PROJECT, "grep", "-lE", f'^(__)?version(__)? = "{version}"$').splitlines()
    assert set(names) - {SKELETON} == {"Cargo.toml", prepare.PACKAGE, *prepare.LOCKS}


@pytest.mark.parametrize("name", ["CHANGELOG.md", "new.txt"])
def test_a_tree_with_changes_is_refused(project: Path, name: str) -> None:
    (project / name).write_text("more")
    assert refused(project) == f"1 files are not committed, as {name}: commit them first"
    assert tree.note_tested(project) == f"1 files are not committed, as {name}"


def test_a_tree_whose_tests_have_not_passed_is_refused(project: Path) -> None:
    (project / "new.txt").write_text("more")
    commit(project)
    assert refused(project) == "the tests of this tree have not passed here: run make test first"


def test_a_release_is_not_tested_until_its_own_tests_have_passed(project: Path) -> None:
    prepare.prepare(project, "patch", "2026-02-28")
    assert not tree.is_tested(project)


@pytest.mark.parametrize(
    ("wanted", "version"),
    [("patch", "0.9.5"), ("minor", "0.10.0"), ("major", "1.0.0"), ("0.12.3", "0.12.3")],
)
def test_the_next_number_is_named_by_its_part_or_whole(wanted: str, version: str) -> None:
    assert prepare.next_version("0.9.4", wanted) == version


@pytest.mark.parametrize("wanted", ["0.9.4", "0.9.3", "0.1.99"])
def test_a_number_that_comes_no_later_is_refused(project: Path, wanted: str) -> None:
    assert refused(project, wanted) == f"version {wanted} does not come after 0.9.4"


@pytest.mark.parametrize("wanted", ["", "next", "1.0", "1.0.0rc1", "01.0.0", "1.0.0 "])
def test_what_is_no_number_is_refused(project: Path, wanted: str) -> None:
    assert refused(project, wanted).startswith(f"{wanted!r} is none of major, minor, patch, nor")


def test_a_release_with_nothing_to_tell_is_refused(project: Path) -> None:
    text = (project / "CHANGELOG.md").read_text()
    (project / "CHANGELOG.md").write_text(text.replace("### Added\n\n- A disk.\n\n", ""))
    commit(project)
    assert tree.note_tested(project) is None
    assert refused(project).startswith("CHANGELOG.md has nothing that was not released")


def test_a_version_that_is_tagged_is_refused(project: Path) -> None:
    tree.git(project, "tag", "v0.10.0")
    with pytest.raises(BuildError, match=r"there is a tag v0\.10\.0 already"):
        prepare.prepare(project, "minor", "2026-02-28")
    assert tree.changes(project) == []
