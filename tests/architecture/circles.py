"""Circles among the files of a crate: files that name each other, straight or by way of others.

An arrow leads from a file to the file that defines what it names. What a folder's `mod.rs` hands
on from its own files (`pub use`) is the address of the folder and no arrow, in neither direction.
Tests are left out: they stand at the end of all arrows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .rust_source import Module, Name, module_of, names_in

Arrows = dict[str, dict[str, set[str]]]
"""For each file the files that it names, and by which words."""


@dataclass
class Crate:
    """What the files of a crate define and hand on."""

    files: dict[Module, str] = field(default_factory=dict)
    """The file of each module, of those inside a file too."""
    handed_on: dict[tuple[Module, str], Name] = field(default_factory=dict)
    names: dict[str, list[Name]] = field(default_factory=dict)

    @classmethod
    def read(cls, sources: Mapping[str, str]) -> "Crate":
        """`sources`: the text of each file, by its path relative to `src`."""
        crate = cls()
        for path, source in sources.items():
            if "tests" in module_of(path):
                continue
            crate.files[module_of(path)] = path
            crate.names[path] = names = list(names_in(source, path))
            for name in names:
                crate.files.setdefault(name.module, path)
                if name.handed_on_as:
                    crate.handed_on[name.module, name.handed_on_as] = name
        return crate

    def home(self, module: Module, path: tuple[str, ...], depth: int = 8) -> str | None:
        """The file that defines what `path` leads to from `module`; none for another crate's."""
        place = list(module)
        for at, word in enumerate(path):
            if word == "crate":
                place = []
            elif word == "super":
                place = place[:-1]
            elif word == "self":
                continue
            elif (*place, word) in self.files:
                place.append(word)
            elif (name := self.handed_on.get((tuple(place), word))) and depth:
                return self.home(name.module, (*name.path, *path[at + 1 :]), depth - 1)
            elif at == 0:
                return None
            else:
                break
        return self.files.get(tuple(place))

    def arrows(self) -> Arrows:
        """All arrows but those from a file to itself."""
        arrows: Arrows = {path: {} for path in self.names}
        for path, names in self.names.items():
            for name in names:
                home = self.home(name.module, name.path)
                if home and home != path and not (name.handed_on_as and _is_below(home, path)):
                    word = [word for word in name.path if word != "self"][-1:]
                    arrows[path].setdefault(home, set()).update(word)
        return arrows


def circles(sources: Mapping[str, str]) -> Iterator[tuple[list[str], str]]:
    """Each circle: its files; and, in words, what each names of the others."""
    arrows = Crate.read(sources).arrows()
    reached = {path: _reached(arrows, path) for path in arrows}
    told: set[str] = set()
    for path in sorted(arrows):
        circle = {other for other in reached[path] if path in reached[other]}
        if circle and path not in told:
            told |= circle
            yield sorted(circle), "\n".join(_lines(arrows, sorted(circle)))


def _lines(arrows: Arrows, circle: list[str]) -> Iterator[str]:
    yield "a circle of " + ", ".join(circle)
    for path in circle:
        for home in sorted(arrows[path].keys() & set(circle)):
            yield f"  {path} names of {home}: {', '.join(sorted(arrows[path][home]))}"


def _reached(arrows: Arrows, start: str) -> set[str]:
    reached: set[str] = set()
    ahead = set(arrows[start])
    while ahead:
        path = ahead.pop()
        reached.add(path)
        ahead |= arrows[path].keys() - reached
    return reached


def _is_below(path: str, parent: str) -> bool:
    """Whether a file belongs to the folder that `parent` speaks for."""
    return module_of(path)[: len(module_of(parent))] == module_of(parent)
