"""A program in the guest that uses a disk all the time, and checks what it reads.

``verifier.rs`` is compiled when it is needed, with the C library in it: the guest has none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from rig.tree import CACHE

from .digest import digest

SOURCE = Path(__file__).with_name("verifier.rs")

COMPILER = "rustc"
OPTIONS = (
    *("--edition", "2024", "-O"),
    *("-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"),
)


def build() -> Path:
    """The program, compiled if that was not done yet."""
    program = CACHE / "guest" / f"verifier-{digest(SOURCE)}"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    partial = program.with_suffix(f".{os.getpid()}")
    compiler = shutil.which(COMPILER) or str(Path.home() / ".cargo/bin" / COMPILER)
    subprocess.run([compiler, *OPTIONS, "-o", str(partial), str(SOURCE)], check=True)
    os.replace(partial, program)
    return program
