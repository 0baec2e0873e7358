"""What holds for all suites: programs under test start as a user's shell starts them, those that
need the whole machine run one at a time, and a test that fails shows what they printed.
"""

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from rig import failure

ONE_AT_A_TIME = ("guest", "dpdk")
"""Suites whose programs take all the processors that a small machine has."""

FIRST = "xen"
"""Its tests take minutes. Begun last, they would keep one worker busy while the other is idle."""


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Where a back-end may listen: a path short enough for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="vhost-user-") as directory:
        yield Path(directory) / "backend.sock"


def pytest_configure() -> None:
    """Takes away what a build machine may add."""
    # Output that is not buffered hides what a flush at the end would find.
    os.environ.pop("PYTHONUNBUFFERED", None)
    # A shell starts its background jobs with SIGINT ignored, and children inherit that: no program
    # that the suites start would hear it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # Before pytest-xdist looks at the marks.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a suite to one worker where they cannot run side by side, and has the
    longest begin first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: here / FIRST not in item.path.parents)
    for item in items:
        for suite in ONE_AT_A_TIME:
            if here / suite in item.path.parents:
                item.add_marker(pytest.mark.xdist_group(suite))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the programs of a test that failed have printed."""
    report = yield
    if report.when == "call" and report.failed:
        report.sections.extend(failure.sections(item))
    return report
