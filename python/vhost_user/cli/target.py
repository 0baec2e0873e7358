"""A device class named on the command line: ``FILE.py:Class`` or ``package.module:Class``."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .exits import Exit, Failure, one_line
from .parser import did_you_mean

AN_IMAGE = "; an image is served by: vhost-user blk IMAGE"


class Target:
    """Something that makes a device when it is called: a class, or a function."""

    def __init__(self, text: str, factory: Callable[..., object]) -> None:
        self.text = text
        self.factory = factory

    @property
    def name(self) -> str:
        """The name after the colon."""
        return str(getattr(self.factory, "__name__", self.text))

    @property
    def summary(self) -> str:
        """The docstring, or nothing."""
        return inspect.getdoc(self.factory) or ""


def load(text: str) -> Target:
    """Imports what ``text`` names. Of a file or module with one device class, that is the target.

    Code in the file runs. :class:`Failure` says where it went wrong.
    """
    place, _, name = text.partition(":")
    if not place:
        raise Failure(f"{text}: write FILE.py:Class or package.module:Class", status=Exit.USAGE)
    try:
        module = _from_file(Path(place)) if _is_file(place) else _from_module(place)
    except Failure:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and Path(place).is_file():
            raise Failure(f"{place}: not a Python file{AN_IMAGE}") from error
        raise Failure(f"cannot load {place}: {_where(error)}") from error
    factory = _named(module, place, name) if name else _only_device(module, place)
    if not callable(factory):
        raise Failure(f"{text} is neither a class nor a function")
    return Target(text, factory)


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Failure(f"{path}: no such file")
    # A file may be called as a module that is in use, by its stem; that one must stay.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_user"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Failure(f"{path}: not a Python file, whose name must end in .py{AN_IMAGE}")
    module = importlib.util.module_from_spec(spec)
    # As for a script: what lies beside the file can be imported, and classes find their module.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _from_module(name: str) -> ModuleType:
    # Also from here, as with `python -m`.
    sys.path.insert(0, "")
    return importlib.import_module(name)


def _named(module: ModuleType, place: str, name: str) -> object:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if not key.startswith("_")]
            hint = did_you_mean(part, known) or _there(module, place)
            raise Failure(f"{place} has no {name}{hint}")
        found = getattr(found, part)
    return found


def _only_device(module: ModuleType, place: str) -> object:
    classes = _devices(module)
    if len(classes) != 1:
        raise Failure(
            f"{place}: say which device class, as in {place}:Class{_there(module, place)}",
            status=Exit.USAGE,
        )
    return classes[0]


def _devices(module: ModuleType) -> list[type]:
    """The device classes that the module defines."""
    from vhost_user import Device

    return [
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing)
        and issubclass(thing, Device)
        and thing.__module__ == module.__name__
    ]


def _there(module: ModuleType, place: str) -> str:
    """A hint at the device classes that could be named."""
    names = ", ".join(f"{place}:{each.__name__}" for each in _devices(module)) or "none"
    return f" (there: {names})"


def _where(error: BaseException) -> str:
    """The error on one line, with the line of code if there is one."""
    what = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    last = [f for f in frames if "importlib" not in f.filename and f.filename != __file__][-1:]
    return f"{last[0].filename}:{last[0].lineno}: {what}" if last else what
