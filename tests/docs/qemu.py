"""QEMU as the documents call it, but with no guest: it starts, connects to its back-ends, and
leaves. That reads every option of the command line with QEMU's own parser.
"""

import shutil
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


def installed() -> str | None:
    return shutil.which(NAME)


def stand_in(folder: Path, command: Sequence[str], environment: dict[str, str] | None) -> Path:
    """Makes a program of QEMU's name in ``folder`` that runs the real ``command``."""
    folder.mkdir()
    program = folder / NAME
    text = SCRIPT.format(python=sys.executable, command=list(command), environment=environment)
    program.write_text(text)
    program.chmod(0o755)
    return folder
