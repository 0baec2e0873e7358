"""What holds for all suites: programs under test start as a user's shell starts them."""

import os
import signal


def pytest_configure() -> None:
    """Takes away what a build machine may add."""
    # Output that is not buffered hides what a flush at the end would find.
    os.environ.pop("PYTHONUNBUFFERED", None)
    # A shell starts its background jobs with SIGINT ignored, and children inherit that: no program
    # that the suites start would hear it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
