"""The program that runs virtual machines, as it is installed here."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from ..exits import Failure, one_line

LIMIT = 20.0
"""Seconds for a program to tell its version, or what it can."""

Version = tuple[int, int]


class Machine(NamedTuple):
    """What is known of the program and the machine that it is to run."""

    program: str | None
    """Its path; None where it is not here."""
    version: Version | None
    """The first two numbers; None: not known, and taken to be new."""
    memory: int
    """Bytes of the guest's memory."""

    def is_older_than(self, version: Version) -> bool:
        """Whether it is known to be so."""
        return self.version is not None and self.version < version


def find(names: Iterable[str], given: str | None) -> str | None:
    """The path of ``given``, or of the first name that is installed. :class:`Failure` if what was
    given is not there."""
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise Failure(f"{given}: no such program, or not executable")
        return found
    return next(filter(None, map(shutil.which, names)), None)


def version_of(program: str) -> Version:
    """What ``program --version`` says. :class:`Failure` if that is no version."""
    shown = said(program, "--version")
    found = re.search(r"(\d+)\.(\d+)", shown)
    if found is None:
        raise Failure(f"{program} --version tells no version: {shown.strip()[:80]!r}")
    return int(found[1]), int(found[2])


def said(program: str, *words: str) -> str:
    """What the program prints. :class:`Failure` if it fails."""
    try:
        done = subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
    except OSError as error:
        raise Failure(f"{program}: {one_line(error)}") from error
    except subprocess.TimeoutExpired as error:
        what = f"{program} {' '.join(words)} did not end in {LIMIT:g} s"
        raise Failure(what) from error
    if done.returncode != 0:
        complaint = os.fsdecode(done.stderr).strip().splitlines()[-1:]
        what = f"{program} {' '.join(words)} ended with status {done.returncode}"
        raise Failure(": ".join([what, *complaint]))
    return done.stdout.decode(errors="replace")


def version_text(version: Version) -> str:
    """A version as it is written: ``11.1``."""
    return ".".join(map(str, version))
