"""Reads Rust sources just far enough to see which modules of its crate a file names.

Not a parser: comments and literals are blanked out, and what is left is a stream of words and
signs in which paths, `use` trees and inline modules are easy to follow.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Whatever may hold text that only looks like code. Raw strings first: they have no escapes.
BLANK = re.compile(
    r"""
      b?r(?P<hash>\#*)".*?"(?P=hash)    # raw string
    | [bc]?"(?:\\.|[^"\\])*"            # string
    | b?'(?:\\[^\n]+?|[^'\\\n])'        # character; a lifetime is not closed
    | //[^\n]*
    | /\*.*?\*/
    """,
    re.VERBOSE | re.DOTALL,
)
Module = tuple[str, ...]
"""A module's path from the crate's root, which is `()`."""

TOKEN = re.compile(r"\w+!?|::|\S")
ROOT = "crate root"
"""Stands for names taken from the root itself: `use crate as c`, `use crate::*`."""


def code(source: str) -> str:
    """The source with comments and literals blanked, line by line as before."""
    return BLANK.sub(lambda m: " " + "\n" * m.group().count("\n"), source)


def lines_with(source: str, word: str) -> Iterator[int]:
    """The numbers of the lines of code that hold `word`, whole."""
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    for number, line in enumerate(code(source).splitlines(), 1):
        if pattern.search(line):
            yield number


def module_of(path: str) -> Module:
    """`ring/split.rs` is `("ring", "split")`, `ring/mod.rs` is `("ring",)`, `lib.rs` is `()`.

    Tests that stand beside their module, `ring/split_tests.rs`, are `("ring", "split", "tests")`.
    """
    *folders, name = path.removesuffix(".rs").removesuffix("_tests").split("/")
    tests = ["tests"] if path.endswith("_tests.rs") else []
    return (*folders, *([] if name in ("mod", "lib") else [name]), *tests)


def modules_named(source: str, path: str, crate: str = "crate") -> set[str]:
    """The top-level modules of a crate that a file names. `path` is relative to `src`.

    `crate::`, `self::` and `super::` are followed, also in inline modules, and so is each leaf of
    a `use` tree. Paths with none of the three in front cannot leave their module. For another
    `crate` its own name stands in front.
    """
    begins = (crate, "self", "super") if crate == "crate" else (crate,)
    words = ["", *TOKEN.findall(code(source)), "", "", ""]
    module = list(module_of(path))
    inline: list[bool] = []  # for each open brace: whether a module's
    found = set()
    for at, word in enumerate(words[:-1]):
        if word == "{":
            inline.append(words[at - 2] == "mod")
            if inline[-1]:
                module.append(words[at - 1])
        elif word == "}" and inline and inline.pop():
            module.pop()
        elif word in begins and _begins_path(*words[at - 1 : at + 2]):
            leaves, _ = _tree(words, at)
            found |= {_top(module, leaf, crate) for leaf in leaves}
    return found


def _begins_path(before: str, word: str, after: str) -> bool:
    return before != "::" and (after == "::" or (before == "use" and after in ("as", ";")))


def _tree(words: list[str], at: int) -> tuple[list[list[str]], int]:
    """The leaves of the path or `use` tree that begins at `at`, and where it ends."""
    if words[at] == "{":
        leaves: list[list[str]] = []
        at += 1
        while words[at] not in ("}", ""):
            more, at = _tree(words, at)
            leaves += more
            at += 2 if words[at] == "as" else 0
            at += 1 if words[at] == "," else 0
        return leaves, at + 1
    # `::<` begins generic arguments, where the path ends.
    if words[at + 1] == "::" and re.match(r"\w|[{*]", words[at + 2]):
        leaves, end = _tree(words, at + 2)
        return [[words[at], *leaf] for leaf in leaves], end
    return [[words[at]]], at + 1


def _top(module: list[str], leaf: list[str], crate: str) -> str:
    """The top-level module that a path leads to from `module`."""
    place = list(module)
    for word in leaf:
        if word == crate:
            place = []
        elif word == "super":
            place = place[:-1]
        elif word != "self":
            place.append(word)
    return place[0] if place and place[0] != "*" else ROOT


@dataclass(frozen=True)
class Name:
    """A path in a file, outside its tests."""

    module: Module
    """Where it stands."""
    path: tuple[str, ...]
    """Its words, the first of which is `crate`, `self`, `super` or a module declared there."""
    handed_on_as: str | None = None
    """For `pub use`: the name that others can use."""


def names_in(source: str, path: str) -> Iterator[Name]:
    """All paths into its own crate that a file names, but for those of its tests."""
    words = ["", "", "", *TOKEN.findall(code(source)), "", "", "", ""]
    own = {words[at + 1] for at, word in enumerate(words[:-2]) if word == "mod"}
    begins = {"crate", "self", "super"} | own
    inline: list[bool] = []  # for each open brace: whether a module's
    module = module_of(path)
    at = 2
    while at < len(words) - 4:
        at += 1
        word = words[at]
        if word == "mod" and words[at + 2] == "{" and _is_for_tests(words, at):
            at = _end_of_block(words, at + 2)
        elif word == "{":
            inline.append(words[at - 2] == "mod")
            module = (*module, words[at - 1]) if inline[-1] else module
        elif word == "}":
            module = module[:-1] if inline and inline.pop() else module
        elif word == "use":
            public = words[at - 1] in ("pub", ")")
            leaves, at = _use_tree(words, at + 1)
            for leaf, alias in leaves:
                if leaf[0] in begins:
                    yield Name(module, leaf, alias if public else None)
        elif word in begins and words[at + 1] == "::" and words[at - 1] not in ("::", "in"):
            yield Name(module, tuple(_tree(words, at)[0][0]))


def _use_tree(words: list[str], at: int) -> tuple[list[tuple[tuple[str, ...], str]], int]:
    """The leaves of the `use` tree that begins at `at`, each with its name here; and its end."""
    if words[at] == "{":
        leaves: list[tuple[tuple[str, ...], str]] = []
        at += 1
        while words[at] not in ("}", ""):
            more, at = _use_tree(words, at)
            leaves += more
            at += 1 if words[at] == "," else 0
        return leaves, at + 1
    if words[at + 1] == "::":
        leaves, end = _use_tree(words, at + 2)
        word = words[at]
        return [((word, *leaf), name if leaf != ("self",) else word) for leaf, name in leaves], end
    if words[at + 1] == "as":
        return [((words[at],), words[at + 2])], at + 3
    return [((words[at],), words[at])], at + 1


def _is_for_tests(words: list[str], at: int) -> bool:
    """Whether the inline module whose `mod` stands at `at` is built for tests alone."""
    while words[at - 1] not in ("]", ";", "}", "{", ""):
        at -= 1
    return words[at - 7 : at] == ["#", "[", "cfg", "(", "test", ")", "]"]


def _end_of_block(words: list[str], at: int) -> int:
    """Where the block ends whose brace opens at `at`."""
    depth = 0
    while words[at + 1]:
        depth += {"{": 1, "}": -1}.get(words[at], 0)
        if not depth:
            break
        at += 1
    return at
