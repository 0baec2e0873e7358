"""``key=value`` words against a constructor's annotations."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from vhost_user.cli.exits import Exit, Failure
from vhost_user.cli.settings import describe, make, parameters, read_settings
from vhost_user.cli.target import Target


class Base:
    def __init__(self, *, size: int, serial: str = "", queues: int = 1) -> None:
        self.size, self.serial, self.queues = size, serial, queues


class Derived(Base):
    """A thing with options of its own.

    And a second paragraph.
    """

    def __init__(self, path: Path, *, ratio: float = 0.5, sync: bool = False, **rest: Any) -> None:
        super().__init__(**rest)
        self.path, self.ratio, self.sync = path, ratio, sync


def every_kind(  # type: ignore[no-untyped-def]
    plain: str = "",
    guessed=3,  # noqa: ANN001
    maybe: int | None = None,
    text_or_path: str | Path = "",
    mode: Literal["fast", "safe"] = "safe",
    key: bytes = b"",
    names: list[str] | None = None,
    bounded: Annotated[int, "positive"] = 1,
) -> dict[str, Any]:
    return locals()


def of(thing: Any) -> Target:
    return Target(f"thing.py:{thing.__name__}", thing)


def refused(thing: Any, *words: str) -> str:
    with pytest.raises(Failure) as caught:
        read_settings(of(thing), words)
    assert caught.value.status is Exit.USAGE
    return str(caught.value).removesuffix(f" (see vhost-user run {of(thing).text} --help)")


def test_values_are_converted_as_annotated_and_through_base_classes() -> None:
    words = ["path=a.img", "size=64M", "ratio=0.25", "sync=yes", "serial=12", "queues=0x10"]
    values = read_settings(of(Derived), words)
    assert values == {
        "path": Path("a.img"),
        "size": 67_108_864,
        "ratio": 0.25,
        "sync": True,
        "serial": "12",
        "queues": 16,
    }
    made = make(of(Derived), values)
    assert (made.path, made.size, made.serial) == (Path("a.img"), 67_108_864, "12")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("plain=a=b", "a=b"),
        ("plain=", ""),
        ("guessed=4k", 4096),
        ("maybe=none", None),
        ("maybe=7", 7),
        ("text_or_path=x", Path("x")),
        ("mode=fast", "fast"),
        ("key=c0ffee", b"\xc0\xff\xee"),
        ("bounded=1K", 1024),
    ],
)
def test_each_kind_of_annotation(word: str, value: object) -> None:
    (found,) = read_settings(of(every_kind), [word]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["path=x"], "Derived: missing size="),
        ([], "Derived: missing path=, size="),
        (["path=x", "sise=1"], "Derived: no option 'sise'; did you mean size?"),
        (
            ["path=x", "colour=1"],
            "Derived: no option 'colour'; it takes path, ratio, sync, size, serial, queues",
        ),
        (["path=x", "size=1", "size=2"], "Derived: size is given twice"),
        (["path"], "Derived: 'path' is not of the form key=value"),
        (["ratio=half"], "Derived: ratio: 'half' is not a number"),
        (["sync=maybe"], "Derived: sync: 'maybe' is neither true nor false"),
        (["self=1"], "Derived: no option 'self'; it takes path, ratio, sync, size, serial, queues"),
    ],
)
def test_what_does_not_fit_is_a_usage_error_that_says_why(words: list[str], problem: str) -> None:
    assert refused(Derived, *words) == problem


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("mode=slow", "mode: 'slow' is none of fast, safe"),
        ("key=abc", "key: 'abc' is not an even number of hexadecimal digits"),
        ("maybe=x", "maybe: 'x' is not a number or a size such as 64M or 1GiB; 'x' is not none"),
        (
            "names=a",
            "names: a value of type list[str] cannot be given on the command line; 'a' is not none",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named(word: str, problem: str) -> None:
    assert refused(every_kind, word) == f"every_kind: {problem}"


def test_a_class_without_options_says_so() -> None:
    class Nothing:
        pass

    assert refused(Nothing, "a=1") == "Nothing: no option 'a'; it takes none"
    assert describe(of(Nothing)).endswith("no options")


def test_positional_only_parameters_are_given_by_name_too() -> None:
    def device(size: int, /, *, name: str) -> tuple[int, str]:
        return size, name

    values = read_settings(of(device), ["name=x", "size=2"])
    assert make(of(device), values) == (2, "x")


def test_an_error_of_the_constructor_is_one_line_with_what_was_given() -> None:
    def device(size: int) -> None:
        raise ValueError(f"size {size}\nis no good")

    with pytest.raises(Failure) as caught:
        make(of(device), {"size": 5})
    assert str(caught.value) == "device(size=5) failed: ValueError: size 5 is no good"
    assert caught.value.status is Exit.FAILED


def test_the_description_has_docstring_types_and_defaults() -> None:
    assert describe(of(Derived)).splitlines() == [
        "A thing with options of its own.",
        "",
        "And a second paragraph.",
        "",
        "options, as key=value (numbers also as 64M or 1GiB):",
        "  path=    Path   required",
        "  ratio=   float  default 0.5",
        "  sync=    bool   default False",
        "  size=    int    required",
        "  serial=  str    default ''",
        "  queues=  int    default 1",
    ]


def test_without_a_catch_all_base_classes_are_not_looked_at() -> None:
    class Closed(Base):
        def __init__(self, size: int) -> None:
            super().__init__(size=size)

    assert list(parameters(of(Closed))) == ["size"]


def test_a_parameter_without_a_type_has_that_of_its_namesake_in_a_base_class() -> None:
    class Plain(Base):
        def __init__(self, size, serial="x", other=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            super().__init__(size=size, serial=serial)

    values = read_settings(of(Plain), ["size=4k", "serial=7", "other=7"])
    assert values == {"size": 4096, "serial": "7", "other": "7"}
