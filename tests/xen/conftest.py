"""What stands in ``dom0`` is collected there and not here; how it went is told at the end."""

import pytest

collect_ignore = ["dom0"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows for each kind of dom0 that was booted how its tests went, and where the results are."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "dom0" and report.when == "call":
                terminalreporter.write_line(f"dom0 {value}")
