"""``key=value`` arguments for the constructor of a device class."""

import inspect
from collections.abc import Iterable
from inspect import Parameter
from typing import Any

from .exits import Exit, Failure, one_line
from .parser import did_you_mean
from .target import Target
from .values import convert, effective_type, type_text


def parameters(target: Target) -> dict[str, Parameter]:
    """What the target takes, by name; with ``**options``, also what its base classes take.

    A parameter that is not annotated is what the base classes say of one of its name.
    """
    found: dict[str, Parameter] = {}
    is_open = True
    for function in _functions(target.factory):
        taken = list(_signature(function, target).parameters.values())
        for parameter in taken:
            if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                continue
            if parameter.name not in found and is_open:
                found[parameter.name] = parameter
            elif parameter.name in found and not _says_its_type(found[parameter.name]):
                named = found[parameter.name]
                found[parameter.name] = named.replace(annotation=parameter.annotation)
        is_open = is_open and any(p.kind is Parameter.VAR_KEYWORD for p in taken)
    found.pop("self", None)
    return found


def read_settings(target: Target, words: Iterable[str]) -> dict[str, Any]:
    """The values of ``key=value`` words, converted by the target's annotations."""
    known = parameters(target)
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise _wrong(target, f"{word!r} is not of the form key=value")
        if key not in known:
            takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
            raise _wrong(target, f"no option {key!r}{did_you_mean(key, known) or takes}")
        if key in values:
            raise _wrong(target, f"{key} is given twice")
        values[key] = _value(target, known[key], text)
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise _wrong(target, f"missing {', '.join(f'{name}=' for name in missing)}")
    return values


def make(target: Target, values: dict[str, Any]) -> Any:
    """Calls the target. Its own errors become a :class:`Failure` of one line."""
    leading = [p.name for p in parameters(target).values() if p.kind is p.POSITIONAL_ONLY]
    positional = [values[name] for name in leading if name in values]
    named = {name: value for name, value in values.items() if name not in leading}
    try:
        return target.factory(*positional, **named)
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        what = f"{type(error).__name__}: {one_line(error)}"
        raise Failure(f"{target.name}({given}) failed: {what}") from error


def describe(target: Target) -> str:
    """The target's documentation and options, for its help."""
    known = parameters(target)
    rows = [
        (f"{name}=", type_text(effective_type(parameter)), _default(parameter))
        for name, parameter in known.items()
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows]
    title = "options, as key=value (numbers also as 64M or 1GiB):" if rows else "no options"
    return "\n".join([part for part in (target.summary, "") if target.summary] + [title, *lines])


def _functions(factory: object) -> Iterable[Any]:
    """What is called when the factory is: the function, or the constructors, derived first."""
    if not inspect.isclass(factory):
        return [factory]
    return [vars(base)["__init__"] for base in factory.__mro__ if "__init__" in vars(base)]


def _says_its_type(parameter: Parameter) -> bool:
    return parameter.annotation is not Parameter.empty or parameter.default is not Parameter.empty


def _signature(function: Any, target: Target) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError as error:
        raise Failure(f"{target.text}: an annotation cannot be read: {error}") from error
    except (TypeError, ValueError):  # A constructor written in C that does not say.
        return inspect.Signature()


def _value(target: Target, parameter: Parameter, text: str) -> Any:
    try:
        return convert(text, effective_type(parameter))
    except ValueError as error:
        raise _wrong(target, f"{parameter.name}: {error}") from None


def _default(parameter: Parameter) -> str:
    return "required" if parameter.default is parameter.empty else f"default {parameter.default!r}"


def _wrong(target: Target, what: str) -> Failure:
    return Failure(
        f"{target.name}: {what} (see vhost-user run {target.text} --help)", status=Exit.USAGE
    )
