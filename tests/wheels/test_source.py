"""What the source archive holds."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from release.box import inherited
from release.source import PROJECT, pack, unpack

pytestmark = pytest.mark.skipif(
    not (PROJECT / ".git").exists(),
    reason="it is made from a clone, and this is an archive unpacked",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("archive"))


def test_it_holds_what_the_repository_tracks(archive: Path) -> None:
    told = subprocess.run(["git", "ls-files"], cwd=PROJECT, stdout=subprocess.PIPE, check=True)
    tracked = {name for name in told.stdout.decode().splitlines() if (PROJECT / name).is_file()}
    with tarfile.open(archive) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
    # The link to the examples is left out; they are in the package.
    assert held == tracked | {"PKG-INFO"}
    assert {"Cargo.lock", "docs/install.md", "tests/wheels/test_source.py"} <= held


def test_it_is_the_same_each_time(archive: Path, tmp_path: Path) -> None:
    assert pack(tmp_path).read_bytes() == archive.read_bytes()


def test_it_is_unpacked_without_its_root(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path / "tree")
    assert (tmp_path / "tree/Cargo.toml").read_bytes() == (PROJECT / "Cargo.toml").read_bytes()


def test_what_decides_about_bytes_is_not_inherited() -> None:
    given = {
        "PATH": "/bin",
        "RUSTFLAGS": "-C target-cpu=native",
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "PYO3_PYTHON": "python3",
        "CARGO_HTTP_CAINFO": "/certificates",
    }
    assert inherited(given) == {"PATH": "/bin", "CARGO_HTTP_CAINFO": "/certificates"}
