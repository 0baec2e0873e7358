"""What was tried is written down as it was seen."""

from pathlib import Path

import pytest

from release.roots import ROOTS
from release.trial import BEGIN, END, Row, TrialError, given, overview, write

NAMES = [
    "vhost_user-0.1.0-cp311-abi3-manylinux_2_28_aarch64.whl",
    "vhost_user-0.1.0-cp311-abi3-manylinux_2_28_x86_64.whl",
    "vhost_user-0.1.0-cp314-cp314t-manylinux_2_28_x86_64.whl",
]
ROW = Row("Debian 12", "3.11.2", "glibc 2.36", "x86_64", "cp311-abi3-manylinux_2_28_x86_64")


def test_a_wheel_that_no_system_ran_is_said_to_be_that() -> None:
    text = overview(NAMES, [ROW])
    assert "| `cp311-abi3` | CPython 3.11 and newer | aarch64, x86_64 | 3.11.2 (x86_64) |" in text
    assert "| `cp314-cp314t` | free-threaded CPython 3.14 | x86_64 | **built, not run** |" in text
    assert "cp315" not in text


def test_the_tables_replace_what_stood_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "install.md"
    document.write_text(f"before\n{BEGIN}old\n{END}after\n")
    write(document, NAMES, [ROW])
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
    assert f"{ROW}\n" in text
    write(document, NAMES, [ROW])
    assert document.read_text() == text


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "install.md"
    document.write_text("no marks\n")
    with pytest.raises(TrialError, match="no place for the table"):
        write(document, NAMES, [ROW])


def test_a_user_gets_the_readmes_disk_and_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.trial.downloaded", list)
    given([], tmp_path)
    assert "class RamDisk" in (tmp_path / "ram.py").read_text()
    assert "vhost_blk" in (tmp_path / "test_ram.py").read_text()


def test_each_wheel_that_can_be_run_has_a_system_that_runs_it() -> None:
    served = {(root.machine, python) for root in ROOTS for python in root.pythons}
    for machine in ("x86_64", "aarch64"):
        assert (machine, "python3.11") in served
        assert (machine, "python3.15") in served
