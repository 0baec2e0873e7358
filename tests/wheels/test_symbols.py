"""The check of symbols is held against libraries that a linker has made."""

import subprocess
from pathlib import Path

import pytest

from release.symbols import Needs, Symbol, faults, names, needs

CALLS_NOTHING = "int made_up_call(int); int f(int a) { return made_up_call(a); }"
"""Calls what no C library has: the linker leaves it open, and without a version."""

CALLS_PWRITEV2 = """
#define _GNU_SOURCE
#include <sys/uio.h>
ssize_t f(int fd, const struct iovec *v) { return pwritev2(fd, v, 1, 0, 0); }
"""
"""Calls what glibc has since 2.26: glibc manual, "Scatter-Gather I/O"."""

MAY_CALL = "int maybe(void) __attribute__((weak)); int f(void) { return maybe ? maybe() : 0; }"
OF_PYTHON = """
int PyModuleDef_Init(void);
int _Py_Dealloc(void);
int f(void) { return PyModuleDef_Init() + _Py_Dealloc(); }
"""
OLDEST, OLD = (2, 17), (2, 28)


def library(directory: Path, source: str, *options: str) -> Path:
    """A shared library of this C source."""
    text, made = directory / "made.c", directory / "made.so"
    text.write_text(source)
    command = ["cc", "-shared", "-fPIC", *options, "-o", str(made), str(text)]
    subprocess.run(command, check=True)
    return made


def found(path: Path, version: tuple[int, int]) -> list[str]:
    return list(faults(needs(path), "glibc", version))


def test_a_symbol_as_old_as_the_promised_library_passes(tmp_path: Path) -> None:
    made = library(tmp_path, CALLS_PWRITEV2)
    assert Symbol("pwritev2", "GLIBC_2.26") in needs(made).symbols
    assert found(made, OLD) == []


def test_a_symbol_that_is_newer_than_the_promised_library_is_named(tmp_path: Path) -> None:
    made = library(tmp_path, CALLS_PWRITEV2)
    assert found(made, OLDEST) == ["pwritev2@GLIBC_2.26 is newer than glibc 2.17"]


def test_a_symbol_that_the_linked_library_lacks_is_named(tmp_path: Path) -> None:
    made = library(tmp_path, CALLS_NOTHING)
    (fault,) = found(made, OLD)
    assert fault == "made_up_call is left open without a version: glibc 2.28 does not have it"


def test_a_symbol_of_a_real_library_that_was_not_linked_is_named(tmp_path: Path) -> None:
    # What zig makes of a function that its stand-in for an old glibc does not have.
    made = library(tmp_path, CALLS_PWRITEV2, "-nostdlib")
    assert Symbol("pwritev2") in needs(made).symbols
    (fault,) = found(made, OLD)
    assert fault.startswith("pwritev2 is left open without a version")


def test_a_weak_symbol_may_be_missing(tmp_path: Path) -> None:
    made = library(tmp_path, MAY_CALL)
    assert Symbol("maybe", weak=True) in needs(made).symbols
    assert found(made, OLDEST) == []


def test_what_the_interpreter_has_may_be_open(tmp_path: Path) -> None:
    made = library(tmp_path, OF_PYTHON)
    assert {s.name for s in needs(made).symbols} >= {"PyModuleDef_Init", "_Py_Dealloc"}
    assert found(made, OLDEST) == []


def test_a_library_that_is_not_promised_is_named(tmp_path: Path) -> None:
    made = library(tmp_path, MAY_CALL, "-Wl,--no-as-needed", "-lgcc_s")
    assert found(made, OLD) == ["libgcc_s.so.1 is needed, which glibc 2.28 does not bring"]


def test_musl_is_asked_by_name() -> None:
    needed = Needs(("libc.so",), (Symbol("read"), Symbol("pwritev2"), Symbol("PyLong_AsLong")))
    assert list(faults(needed, "musl", (1, 2), {"read", "write"})) == [
        "pwritev2 is left open without a version: musl 1.2 does not have it"
    ]


def test_a_version_of_glibc_is_a_fault_on_musl() -> None:
    needed = Needs((), (Symbol("read", "GLIBC_2.2.5"),))
    assert list(faults(needed, "musl", (1, 2), {"read"})) == [
        "read@GLIBC_2.2.5 has a version that musl 1.2 does not know"
    ]


def test_releases_are_compared_as_numbers() -> None:
    needed = Needs((), (Symbol("a", "GLIBC_2.2.5"), Symbol("b", "GLIBC_2.9"), Symbol("c", "X_1")))
    assert list(faults(needed, "glibc", (2, 10))) == [
        "c@X_1 has a version that glibc 2.10 does not know"
    ]


def test_the_names_of_a_library_are_those_that_it_defines(tmp_path: Path) -> None:
    made = library(tmp_path, CALLS_PWRITEV2)
    assert "f" in names(made)
    assert "pwritev2" not in names(made)


def test_a_file_without_a_table_of_symbols_is_no_library(tmp_path: Path) -> None:
    text, made = tmp_path / "made.c", tmp_path / "made.o"
    text.write_text(MAY_CALL)
    subprocess.run(["cc", "-c", "-o", str(made), str(text)], check=True)
    with pytest.raises(ValueError, match="no shared library"):
        needs(made)
