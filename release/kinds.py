"""The wheels that there are: for which Python, and for which system."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Abi:
    """The Python that a wheel is for. ``interpreter`` is what maturin calls it."""

    tag: str
    interpreter: str
    features: tuple[str, ...] = ()
    serves: str


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The system that a wheel is for: ``libc`` is ``glibc`` or ``musl``, ``version`` its oldest."""

    machine: str
    libc: str
    version: tuple[int, int]

    @property
    def tag(self) -> str:
        """What wheels call it: ``manylinux_2_28_x86_64``."""
        return f"{self.compatibility}_{self.machine}"

    @property
    def compatibility(self) -> str:
        """The same without the processor."""
        kind = {"glibc": "manylinux", "musl": "musllinux"}[self.libc]
        return "_".join([kind, *map(str, self.version)])

    @property
    def target(self) -> str:
        """The compiler's name of it."""
        return f"{self.machine}-unknown-linux-{'gnu' if self.libc == 'glibc' else 'musl'}"


@dataclass(frozen=True)
class Kind:
    """One wheel."""

    abi: Abi
    platform: Platform

    def name(self, version: str) -> str:
        """The file's name, for a version of the package."""
        return f"vhost_user-{version}-{self.abi.tag}-{self.platform.tag}.whl"


MACHINES = ("x86_64", "aarch64")
GLIBC, MUSL = (2, 28), (1, 2)

ABIS = (
    Abi(tag="cp311-abi3", interpreter="python3.11", serves="CPython 3.11 and newer"),
    Abi(
        tag="cp315-abi3.abi3t",
        interpreter="python3.15",
        features=("abi3t",),
        serves="CPython 3.15 and newer, free-threaded or not",
    ),
    Abi(tag="cp314-cp314t", interpreter="python3.14t", serves="free-threaded CPython 3.14"),
)


def kinds(libc: str) -> Iterator[Kind]:
    """All wheels for systems of one C library."""
    version = {"glibc": GLIBC, "musl": MUSL}[libc]
    for machine, abi in itertools.product(MACHINES, ABIS):
        yield Kind(abi, Platform(machine=machine, libc=libc, version=version))


def kind_of(name: str) -> Kind:
    """The wheel that a file of this name is. ``ValueError`` for a name of none."""
    python, abi, tag = name.removesuffix(".whl").split("-")[-3:]
    for kind in (*kinds("glibc"), *kinds("musl")):
        if (f"{python}-{abi}", tag) == (kind.abi.tag, kind.platform.tag):
            return kind
    raise ValueError(f"{name} is no wheel of this package")
