"""What Python knows of the core's threads.

A thread that the interpreter has not started is ``Dummy-1`` or so there, and has none of the
functions that ``threading.settrace`` and ``threading.setprofile`` set: tools that measure coverage,
debuggers and profilers would not see the callbacks of a device.
"""

import sys
import threading


def introduce(name: str) -> None:
    """Names the calling thread, and has it traced and profiled as threads that start now are."""
    threading.current_thread().name = name
    trace, profile = threading.gettrace(), threading.getprofile()
    if profile is not None:
        sys.setprofile(profile)
    if trace is not None:
        sys.settrace(trace)


def forget() -> None:
    """Takes the calling thread, which ends, from the list of those that are alive."""
    sys.settrace(None)
    sys.setprofile(None)
    if sys.version_info < (3, 13):  # Later versions do this themselves.
        active: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]  # noqa: SLF001
        active.pop(threading.get_ident(), None)
