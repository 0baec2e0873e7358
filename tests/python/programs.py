"""Whole Python programs that serve a device, run as processes of their own."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Self

PREAMBLE = """
import os, signal, sys, threading, time
import vhost_user as vu
from python.disks import RamDisk
from python.driver import open_driver
SOCKET = os.environ["SOCKET"]
"""

ROOT = Path(__file__).parents[2]


class Programs:
    """Starts programs that serve at ``socket``; a context manager that ends those still running."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, body: str, *, pass_fds: Sequence[int] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a program; `SOCKET` is its socket's path."""
        environment = {"PYTHONPATH": str(ROOT / "tests"), "SOCKET": str(self._socket)} | environment
        process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env=os.environ | environment,
        )
        self._started.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The program's next line; the test fails with what it said on stderr if there is none."""
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    if not text:
        raise AssertionError(f"the program ended: {process.communicate()[1]}")
    return text


def assert_prints(process: subprocess.Popen[str], text: str) -> None:
    """The program ends in order, and has printed this."""
    code, out, err = finish(process)
    assert (code, out) == (0, text), err


def finish(process: subprocess.Popen[str], seconds: float = 10.0) -> tuple[int, str, str]:
    """Waits for the program's end; gives exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end in {seconds} s: {out}{err}") from None
    return process.returncode, out, err
