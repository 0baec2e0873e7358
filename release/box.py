"""A command that finds the sources in the same place on every machine, so that it builds the same
bytes: paths end up in messages of panics, in debug information and in lists of components.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

PLACE = Path("/usr/src")
"""Where the sources are, for the command alone: it exists on every system."""

SOURCE, CARGO, TARGET = PLACE / "vhost-user", PLACE / "cargo", PLACE / "target"


class BuildError(Exception):
    """A wheel cannot be built, or must not be handed out."""


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would change the bytes that are built."""
    decides = ("CARGO_", "RUSTC", "RUSTFLAGS", "RUSTDOC", "PYO3_", "MATURIN_", "CFLAGS", "LDFLAGS")
    reaches = ("CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_SOURCE_")
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(decides) or name.startswith(reaches)
    }


def run(
    stage: Path, command: Sequence[str], environment: Mapping[str, str], *, offline: bool = False
) -> None:
    """Runs ``command`` in the sources, which are in ``stage`` as ``vhost-user``.

    Without the network if it is to be ``offline``; with the host's crates if not.
    """
    for name in ("cargo", "target"):
        (stage / name).mkdir(parents=True, exist_ok=True)
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    steps = [f"mount --bind {shlex.quote(str(stage))} {PLACE}"]
    if not offline:
        home.mkdir(parents=True, exist_ok=True)
        steps.append(f"mount --bind {shlex.quote(str(home))} {CARGO}")
    steps += [f"cd {SOURCE}", f"exec {shlex.join(command)}"]
    spaces = ["--user", "--map-root-user", "--mount", *(["--net"] if offline else [])]
    whole = {
        **inherited(os.environ),
        "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup")),
        **environment,
        "CARGO_HOME": str(CARGO),
        "CARGO_TARGET_DIR": str(TARGET),
    }
    done = subprocess.run(
        ["unshare", *spaces, "sh", "-c", " && ".join(steps)], env=whole, check=False
    )
    if done.returncode != 0:
        raise BuildError(
            f"{shlex.join(command)} ended with {done.returncode}. Where unshare itself fails, user "
            "namespaces are off: sysctl kernel.unprivileged_userns_clone=1, or run it as root"
        )
