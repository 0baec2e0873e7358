"""QEMU as the documents call it, but with no guest: it starts, connects to its back-ends, and
leaves. That reads every option of the command line with QEMU's own parser.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "qemu-system-x86_64"

SCRIPT = """#!{python}
import subprocess
import sys

words = {command!r} + sys.argv[1:]
words += ["-nodefaults", "-accel", "tcg", "-S", "-display", "none", "-qmp", "stdio"]
talk = '{{"execute": "qmp_capabilities"}} {{"execute": "quit"}}'
sys.exit(subprocess.run(words, input=talk, text=True, env={environment!r}).returncode)
"""


SINCE = (11, 1)
"""The first version that knows the options and devices of the documents: ``reconnect-ms`` came with
9.2, the generic device with 11.1."""


def installed() -> str | None:
    """The system's own QEMU, if it has one that is new enough."""
    found = shutil.which(NAME)
    return found if found and version(found) >= SINCE else None


def version(program: str) -> tuple[int, int]:
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    numbers = re.search(r"version (\d+)\.(\d+)", shown.stdout)
    assert numbers is not None, shown.stdout
    return int(numbers[1]), int(numbers[2])


def stand_in(folder: Path, command: Sequence[str], environment: dict[str, str] | None) -> Path:
    """Makes a program of QEMU's name in ``folder`` that runs the real ``command``."""
    folder.mkdir()
    program = folder / NAME
    text = SCRIPT.format(python=sys.executable, command=list(command), environment=environment)
    program.write_text(text)
    program.chmod(0o755)
    return folder
