"""``vhost-user new``: a package for a device, with a test that passes."""

import argparse
import importlib
import keyword
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .device_types import NAMES, type_number
from .exits import Exit, Failure, one_line
from .parser import checked
from .streams import note

KINDS = {"blk": "a disk", "generic": "any other device"}

RNG = 4
"""The type of a generic device, if nothing is said: most guests have a driver for it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.add_argument(
        "kind",
        metavar="KIND",
        choices=tuple(KINDS),
        help=", ".join(f"{kind}: {what}" for kind, what in KINDS.items()),
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        type=checked(_name),
        help="what the package is called, and the directory that is made for it here",
    )
    parser.add_argument(
        "--type",
        type=checked(type_number),
        metavar="TYPE",
        help="the type of a generic device: console, i2c, gpio, ... (rng)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    if options.type is not None and options.kind != "generic":
        raise Failure(f"--type is for generic, not for {options.kind}", status=Exit.USAGE)
    skeleton = importlib.import_module(f".skeletons.{options.kind}", __package__)
    place = Path(options.name)
    try:
        _make(place, dict(_filled(skeleton.FILES, options.name, options.type or RNG)))
    except OSError as error:
        raise Failure(f"cannot make {place}: {one_line(error)}") from error
    note(f"{place} is there; next: cd {place} && pytest")
    return Exit.OK


def _filled(files: dict[str, str], name: str, device_id: int) -> Iterator[tuple[str, str]]:
    """The files with the names put in."""
    module = name.replace("-", "_")
    words = {
        "{name}": name,
        "{module}": module,
        "{Class}": "".join(part.capitalize() for part in module.split("_")),
        "{device_id}": str(device_id),
        "{type}": NAMES.get(device_id, str(device_id)),
    }
    pattern = re.compile("|".join(map(re.escape, words)))
    for path, text in files.items():
        path, text = (pattern.sub(lambda found: words[found[0]], each) for each in (path, text))
        yield path, text


def _make(place: Path, files: dict[str, str]) -> None:
    """Makes the directory, whole or not at all; one that is there is left as it is."""
    if place.exists():
        raise Failure(f"{place} is there already")
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        for name, text in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        made.chmod(0o777 & ~_umask())
        os.rename(made, place)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _name(text: str) -> str:
    """A name that is right for a distribution, and with _ for - for a module."""
    if not re.fullmatch(r"[a-z]([a-z0-9_-]*[a-z0-9])?", text):
        raise ValueError(
            f"{text!r} is no name for a package: small letters, digits, - and _, a letter first "
            "and a letter or digit last"
        )
    module = text.replace("-", "_")
    taken = {"vhost_user", "tests", "src", *sys.stdlib_module_names}
    if keyword.iskeyword(module) or module in taken:
        raise ValueError(f"{text!r} is a name that Python, or this package, has already")
    return text
