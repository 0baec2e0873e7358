"""A long copy gives the interpreter up: nobody else's Python code waits for it.

Each case is a process of its own, which can get no further if that does not hold.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .stalled_copy import CASES

PROGRAM = Path(__file__).with_name("stalled_copy.py")
DEADLINE = 60.0
NOT_THERE = 77


@pytest.mark.parametrize("case", list(CASES))
def test_the_interpreter_is_free_while_a_long_copy_goes_on(case: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])}
    command = [sys.executable, str(PROGRAM), case]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    if result.returncode == NOT_THERE:
        pytest.skip(f"no userfaultfd: {result.stdout.strip()}")
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)
