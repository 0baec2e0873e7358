"""Text from the command line as values of annotated types."""

import inspect
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from .sizes import parse_size

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_PLAIN = (bool, int, float, str, Path)


def effective_type(parameter: inspect.Parameter) -> Any:
    """What a parameter takes: as annotated, else as its default is, else text."""
    if parameter.annotation not in (inspect.Parameter.empty, Any):
        return parameter.annotation
    return next((kind for kind in _PLAIN if isinstance(parameter.default, kind)), str)


def type_text(kind: Any) -> str:
    """How a type is called in help and errors."""
    if isinstance(kind, type) and not typing.get_args(kind):
        return kind.__name__
    if typing.get_origin(kind) is Annotated:
        return type_text(typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (Union, types.UnionType):
        return "|".join(map(type_text, typing.get_args(kind)))
    return str(kind).replace("typing.", "")


def convert(text: str, kind: Any) -> Any:
    """``text`` as a value of the type ``kind``. ``ValueError`` if it is none."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return convert(text, typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return _first_that_fits(text, typing.get_args(kind))
    if origin is Literal:
        return _choice(text, typing.get_args(kind))
    if kind is str:
        return text
    if kind is bool:
        return _truth(text)
    if kind is int:
        return parse_size(text)
    if kind is float:
        return _float(text)
    if kind is Path or os.PathLike in (kind, origin):
        return Path(text)
    if kind in (None, type(None)):
        return _nothing(text)
    if kind is bytes:
        return _hexadecimal(text)
    raise ValueError(f"a value of type {type_text(kind)} cannot be given on the command line")


def _first_that_fits(text: str, kinds: tuple[Any, ...]) -> Any:
    # Text fits everything, so it is tried last.
    problems = []
    for kind in sorted(kinds, key=lambda kind: kind is str):
        try:
            return convert(text, kind)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems))


def _choice(text: str, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if text == str(choice):
            return choice
    raise ValueError(f"{text!r} is none of {', '.join(map(str, choices))}")


def _truth(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _nothing(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(f"{text!r} is not none")


def _hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an even number of hexadecimal digits") from None
