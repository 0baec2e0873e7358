"""Whole Python programs that serve a device, run as processes of their own."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

PREAMBLE = """
import os, signal, sys, threading, time
import vhost_user as vu
from python.disks import RamDisk
from python.driver import open_driver
SOCKET = os.environ["SOCKET"]
"""

ROOT = Path(__file__).parents[2]


def start(
    body: str, socket: Path, *, pass_fds: Sequence[int] = (), **environment: str
) -> subprocess.Popen[str]:
    """Starts a program; `SOCKET` is its socket's path."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "SOCKET": str(socket), **environment},
    )


def line(process: subprocess.Popen[str]) -> str:
    """The program's next line; the test fails with what it said on stderr if there is none."""
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    if not text:
        raise AssertionError(f"the program ended: {process.communicate()[1]}")
    return text


def finish(process: subprocess.Popen[str], seconds: float = 10.0) -> tuple[int, str, str]:
    """Waits for the program's end; gives exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end in {seconds} s: {out}{err}") from None
    return process.returncode, out, err
