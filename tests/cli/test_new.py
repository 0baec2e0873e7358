"""`vhost-user new`: what it makes is a package whose tests pass, with nothing installed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .command import LIMIT, Server, run

FILES = {
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "src/my_disk/__init__.py",
    "src/my_disk/device.py",
    "src/my_disk/py.typed",
    "tests/test_my_disk.py",
}


def made(kind: str, name: str, *words: str) -> Path:
    result = run("new", kind, name, *words)
    assert (result.status, result.out) == (0, "")
    assert result.err == f"{name} is there; next: cd {name} && pytest\n"
    return Path(name)


def tool(place: Path, *words: str) -> str:
    """Runs a module of Python's there, as somebody who has just made the package."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=place,
        env=clean,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(("kind", "count"), [("blk", 3), ("generic", 2)])
def test_the_tests_of_a_new_package_pass(kind: str, count: int) -> None:
    place = made(kind, "my-disk")
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == FILES
    assert f"{count} passed" in tool(place, "pytest", "-p", "no:cacheprovider")


@pytest.mark.parametrize("kind", ["blk", "generic"])
def test_the_tests_of_a_new_package_can_fail(kind: str) -> None:
    place = made(kind, "my-disk")
    device = place / "src/my_disk/device.py"
    right, wrong = {
        "blk": ("= buf", "= bytes(len(buf))"),
        "generic": ("said.upper()", "said"),
    }[kind]
    text = device.read_text()
    assert right in text
    device.write_text(text.replace(right, wrong))
    with pytest.raises(AssertionError, match="1 failed"):
        tool(place, "pytest", "-p", "no:cacheprovider")


@pytest.mark.parametrize("kind", ["blk", "generic"])
def test_a_new_package_is_formatted_and_typed(kind: str) -> None:
    place = made(kind, "my-disk")
    tool(place, "ruff", "format", "--isolated", "--line-length", "100", "--check", ".")
    # Who has no configuration gets these rules: errors, and what is not used.
    tool(place, "ruff", "check", "--isolated", ".")
    tool(place, "mypy", "--strict", "--config-file", "", "--cache-dir", os.devnull, "src")


def test_the_device_of_a_new_package_is_served() -> None:
    made("blk", "fast_disk2")
    path = "fast_disk2/src/fast_disk2/device.py"
    with Server("run", path, "size=1M", "--socket-path", "d.sock") as server:
        assert server.first_line == "listening on d.sock  blk 1 MiB 16 queues"
    text = Path(path).read_text()
    assert "class FastDisk2(vu.BlockDevice):" in text


def test_a_generic_device_has_the_type_that_was_asked_for() -> None:
    place = made("generic", "beeper", "--type", "gpio")
    with Server("run", f"{place}/src/beeper/device.py", "--socket-path", "d.sock") as server:
        assert server.first_line == "listening on d.sock  gpio 1 queue"
    assert (
        "vhost-user snippet beeper.sock --type gpio --for qemu" in (place / "README.md").read_text()
    )


def test_the_project_file_names_what_it_needs() -> None:
    project = tomllib.loads((made("blk", "my-disk") / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["dependencies"]) == ("my-disk", ["vhost-user"])


def test_what_is_there_is_left_alone(directory: Path) -> None:
    place = directory / "mine"
    place.mkdir()
    (place / "notes").write_text("precious")
    result = run("new", "blk", "mine")
    assert (result.status, result.out) == (1, "")
    assert result.err == "vhost-user: mine is there already\n"
    assert [path.name for path in directory.rglob("*")] == ["mine", "notes"]


def test_a_directory_that_cannot_be_made_is_one_line(directory: Path) -> None:
    name = "a" * 300
    result = run("new", "blk", name)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"vhost-user: cannot make {name}: ")
    assert result.err.endswith(": File name too long\n")
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["floppy", "x"], "argument KIND: invalid choice: 'floppy'"),
        (["blk"], "the following arguments are required: NAME"),
        (["blk", "My Disk"], "'My Disk' is no name for a package"),
        (["blk", "../up"], "'../up' is no name for a package"),
        (["blk", "class"], "'class' is a name that Python, or this package, has already"),
        (["blk", "vhost-user"], "'vhost-user' is a name that Python, or this package"),
        (["blk", "json"], "'json' is a name that Python"),
        (["blk", "x1", "--type", "rng"], "--type is for generic, not for blk"),
        (["generic", "x1", "--type", "toaster"], "no device type 'toaster'"),
    ],
)
def test_a_wrong_name_is_one_line(directory: Path, words: list[str], problem: str) -> None:
    result = run("new", *words)
    assert (result.status, result.out) == (2, "")
    assert problem in result.err
    assert result.err.count("\n") == 1
    assert list(directory.iterdir()) == []
