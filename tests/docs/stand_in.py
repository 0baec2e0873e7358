"""Programs from elsewhere under the names by which the documents call them."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path


def stand_in(
    folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Path:
    """Makes a program ``name`` in ``folder`` that runs ``command``, in the reader's environment and
    ``environment``.
    """
    folder.mkdir(exist_ok=True)
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    program = folder / name
    program.write_text(f'#!/bin/sh\nexec {shlex.join(["env", *settings, *command])} "$@"\n')
    program.chmod(0o755)
    return program
