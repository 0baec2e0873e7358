"""What a shared library needs of its C library, held against the one that its wheel promises.

A symbol that the promised C library does not have makes the loader refuse the module. Where the
symbol has a version, the version says since when glibc has it. A linker that links against a C
library without the symbol leaves it open and without a version: only the names tell then.
musl has no versions at all, so that its names are asked for.

Sources: System V Application Binary Interface, "Symbol Table"; Linux Standard Base, "Symbol
Versioning"; PEP 600 and PEP 656.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.sections import Symbol as Entry
from elftools.elf.sections import SymbolTableSection

LIBRARIES = {
    "glibc": {
        *("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"),
        *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
    },
    "musl": {"libc.so"},
}
"""Whose presence is promised with a C library."""

PYTHON = re.compile(r"_?Py[A-Z_]\w*")
"""Names that the interpreter has: which of them are stable is abi3audit's to say."""

FIRST = 2
"""Indices of versions below it stand for no version."""


@dataclass(frozen=True)
class Symbol:
    """A symbol that a library leaves to others. A weak one may be missing."""

    name: str
    version: str = ""
    weak: bool = False

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True)
class Needs:
    """What a library needs: other libraries, and symbols."""

    libraries: tuple[str, ...]
    symbols: tuple[Symbol, ...]


def needs(path: Path) -> Needs:
    """What the shared library at ``path`` needs."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        return Needs(tuple(_libraries(elf)), tuple(_open_symbols(elf)))


def names(path: Path) -> set[str]:
    """The symbols that the shared library at ``path`` has for others."""
    with path.open("rb") as file:
        return {
            symbol.name for symbol in _table(ELFFile(file)).iter_symbols() if not _is_open(symbol)
        }


def faults(
    needed: Needs, libc: str, version: tuple[int, int], known: Collection[str] = ()
) -> Iterator[str]:
    """Why a library with these needs does not load with ``libc`` of ``version``, in sentences.

    ``known`` are the names that musl has. Those of glibc are not asked for: they have versions.
    """
    promised = f"{libc} {_text(version)}"
    for library in needed.libraries:
        if library not in LIBRARIES[libc]:
            yield f"{library} is needed, which {promised} does not bring"
    for symbol in needed.symbols:
        if symbol.version:
            since = _since(symbol.version)
            if libc != "glibc" or since is None:
                yield f"{symbol} has a version that {promised} does not know"
            elif since > version:
                yield f"{symbol} is newer than {promised}"
        elif not symbol.weak and not PYTHON.fullmatch(symbol.name) and symbol.name not in known:
            yield f"{symbol} is left open without a version: {promised} does not have it"


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _since(version: str) -> tuple[int, ...] | None:
    """The release of glibc that a symbol's version stands for."""
    found = re.fullmatch(r"GLIBC_(\d+(?:\.\d+)+)", version)
    return tuple(map(int, found[1].split("."))) if found else None


def _libraries(elf: ELFFile) -> Iterator[str]:
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            for tag in section.iter_tags("DT_NEEDED"):
                yield str(tag.needed)  # type: ignore[attr-defined] # pyelftools makes it up


def _open_symbols(elf: ELFFile) -> Iterator[Symbol]:
    versions = _Versions(elf)
    for index, symbol in enumerate(_table(elf).iter_symbols()):
        if symbol.name and _is_open(symbol):
            weak = symbol["st_info"]["bind"] == "STB_WEAK"
            yield Symbol(symbol.name, versions.of(index), weak)


def _table(elf: ELFFile) -> SymbolTableSection:
    table = elf.get_section_by_name(".dynsym")
    if not isinstance(table, SymbolTableSection):
        raise ValueError("no shared library: it has no table of dynamic symbols")
    return table


def _is_open(symbol: Entry) -> bool:
    return bool(symbol["st_shndx"] == "SHN_UNDEF")


class _Versions:
    """The version of each symbol by its index; none where there is none."""

    def __init__(self, elf: ELFFile) -> None:
        self._of = elf.get_section_by_name(".gnu.version")
        self._names: dict[int, str] = {}
        for section in elf.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for _, entries in section.iter_versions():
                    self._names |= {entry["vna_other"]: entry.name for entry in entries}

    def of(self, index: int) -> str:
        if not isinstance(self._of, GNUVerSymSection):
            return ""
        number = self._of.get_symbol(index)["ndx"]
        if not isinstance(number, int) or number < FIRST:
            return ""
        return self._names[number & 0x7FFF]
