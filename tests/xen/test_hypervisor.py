"""Boots each kind of dom0, runs the tests of ``dom0`` in it, and passes when all of them do.

``.cache/xen/results/KIND`` keeps ``junit.xml`` and ``console.log`` of the last run, and
``costs.md``, a table of what it costs to reach a page.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .rig.image import build
from .rig.machine import ARM, KINDS, MORE_KINDS, PV, Kind, MachineError, Results, run
from .rig.packages import DIRECTORY, emulator, fetch

SECONDS = 900
"""A run takes about 1.5 minutes on an idle machine with two cores, and longer on a busy one."""

BOOTED = KINDS + (MORE_KINDS if os.environ.get("XEN_KINDS") == "all" else ())

PYTEST = (
    "python3 -m pytest -q -ra --rootdir /opt/tests -p no:cacheprovider"
    " -o tmp_path_retention_policy=none --junitxml=/results/junit.xml"
)


TESTS = "/opt/tests/xen/dom0"
COSTS = "python3 -m xen.dom0.costs >/results/costs.md"

ALL_TESTS = f"{PYTEST} {TESTS}/kernel {TESTS}/package && {COSTS}"
MOST_TESTS = f"{PYTEST} {TESTS}/kernel {TESTS}/package -m 'not once'"
"""What the kernel and the hypervisor have no part in, as how a front-end tells what it means, is
the same in each kind of dom0: it is run in one, and there the costs are measured."""

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
WHEELS = {"amd64": TARGET / "wheels", "arm64": TARGET / "arm64"}


def wheel(architecture: str) -> Path:
    """The newest wheel, which ``make build`` or ``make build-arm64`` has left."""
    directory = WHEELS[architecture]
    found = sorted(directory.glob("vhost_user-*.whl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no wheel of the package in {directory}: make build build-arm64")
    return found[-1]


def boot(kind: Kind, script: str, directory: Path, *, seconds: float = SECONDS) -> Results:
    packages = fetch(kind.release, kind.architecture)
    image = build(packages, directory, script, wheel(kind.architecture))
    try:
        console = directory / "console.log"
        return run(kind, packages, emulator(kind.architecture), image, console, seconds=seconds)
    finally:
        image.unlink()


def counts(junit: bytes) -> str:
    """How many tests a JUnit report has, in words."""
    [suite] = ElementTree.fromstring(junit).iter("testsuite")
    names = ("tests", "failures", "errors", "skipped")
    tests, failed, broken, skipped = (int(suite.get(name, "0")) for name in names)
    passed = tests - failed - broken - skipped
    return f"{passed} passed, {failed + broken} failed, {skipped} skipped"


def failures(junit: bytes) -> list[str]:
    """The tests in a JUnit report that did not pass, with what they said."""
    found = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        for outcome in (*case.findall("failure"), *case.findall("error")):
            found.append(f"{case.get('classname')}::{case.get('name')}\n{outcome.text}")
    return found


@pytest.fixture(autouse=True)
def a_limit_of_its_own() -> None:
    """A machine has a deadline: that of pytest would end it on one that is loaded."""
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("kind", BOOTED, ids=lambda kind: kind.name)
def test_every_test_in_dom0_passes(
    kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    directory = DIRECTORY / "results" / kind.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    results = boot(kind, ALL_TESTS if kind is PV else MOST_TESTS, directory)
    for name, content in results.files.items():
        (directory / name).write_bytes(content)
    junit = results.files["junit.xml"]
    record_property("dom0", f"{kind.name}: {counts(junit)}; {directory}")
    failed = failures(junit)
    assert not failed, "\n\n".join(failed)
    assert results.status == 0, f"dom0 ended with {results.status}: see {directory}"


def test_results_are_counted() -> None:
    junit = b'<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>'
    assert counts(junit) == "3 passed, 3 failed, 3 skipped"


def test_the_status_and_the_files_of_the_script_come_out(tmp_path: Path) -> None:
    results = boot(ARM, "seq 1 30000 >/results/numbers; exit 7", tmp_path)
    assert results.status == 7
    assert results.files["numbers"].split() == [b"%d" % n for n in range(1, 30001)]


def test_a_dom0_that_crashes_is_an_error_with_its_console(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"without results(.|\n)*sysrq triggered crash"):
        boot(ARM, "echo c >/proc/sysrq-trigger", tmp_path)


def test_a_dom0_that_hangs_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no end in 5 s"):
        boot(ARM, "sleep 1000", tmp_path, seconds=5)
