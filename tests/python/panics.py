"""Bugs of the extension module, as Python code can bring them about."""


def panics() -> list[BaseException]:
    """What a bug in an extension module is in Python: raised there it goes on as what it was.

    Each module of that kind has a class of its own, and one of them is this package's.
    """
    kinds = (c for c in BaseException.__subclasses__() if c.__module__ == "pyo3_runtime")
    found = [kind("made up") for kind in kinds]
    assert found
    return found
