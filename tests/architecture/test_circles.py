"""No files of a crate name each other in a circle, and the check sees it when they do."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from . import borders
from .circles import Crate, circles

PROJECT = Path(__file__).parents[2]
CRATES = {name: PROJECT / f"rust/{name}/src" for name in ("core", "python")}


def sources(crate: str) -> dict[str, str]:
    return {path: source for source, path in borders.sources(CRATES[crate], "*.rs")}


@pytest.mark.parametrize("crate", CRATES)
def test_no_files_of_a_crate_name_each_other_in_a_circle(crate: str) -> None:
    found = [told for _, told in circles(sources(crate))]
    assert "\n".join(found) == ""


def test_the_check_follows_the_sources() -> None:
    arrows = Crate.read(sources("core")).arrows()
    assert {"memory/table.rs", "memory/xen/demand.rs"} <= arrows["memory/buffers.rs"].keys()
    assert arrows["ring/split.rs"]["memory/window.rs"] == {"Window"}
    assert arrows["memory/segment.rs"].keys() == {"sys/shared_copy.rs"}
    assert arrows["address.rs"].keys() == set()


# The check itself.

CIRCLES: dict[str, Mapping[str, str]] = {
    "two files": {
        "a/mod.rs": "mod b; mod c;",
        "a/b.rs": "use super::c::C; pub struct B;",
        "a/c.rs": "use super::b::B; pub struct C;",
    },
    "three files": {
        "a/mod.rs": "mod b; mod c; mod d;",
        "a/b.rs": "use super::c::C; pub struct B;",
        "a/c.rs": "use super::d::D; pub struct C;",
        "a/d.rs": "use crate::a::b::B; pub struct D;",
    },
    "by what the folder hands on": {
        "a/mod.rs": "mod b; mod c; pub use b::B; pub(crate) use c::C;",
        "a/b.rs": "use super::C; pub struct B;",
        "a/c.rs": "use crate::a::B; pub struct C;",
    },
    "by another name": {
        "a/mod.rs": "mod b; mod c; pub use b::B as Other;",
        "a/b.rs": "use super::c::C; pub struct B;",
        "a/c.rs": "use super::Other; pub struct C;",
    },
    "with the folder's own words": {
        "a/mod.rs": "mod b; use b::B; pub struct A;",
        "a/b.rs": "use super::A; pub struct B;",
    },
    "with no use at all": {
        "a/mod.rs": "mod b; fn f() -> b::B { b::make() } pub(crate) const A: u8 = 0;",
        "a/b.rs": "pub(super) fn make() -> u8 { super::A }",
    },
    "by a module imported whole": {
        "a/mod.rs": "mod b; mod c;",
        "a/b.rs": "use super::{c::{self}, d}; fn f() { c::g() }",
        "a/c.rs": "use super::b as other; pub fn g() { other::f() }",
    },
}


@pytest.mark.parametrize("name", CIRCLES)
def test_a_circle_is_seen(name: str) -> None:
    ((files, _),) = circles(CIRCLES[name])
    assert set(files) <= CIRCLES[name].keys()
    assert len(files) == (3 if name == "three files" else 2)


STRAIGHT: dict[str, Mapping[str, str]] = {
    "what the folder hands on is its address": {
        "a/mod.rs": "mod b; mod c; pub use b::B; pub struct A;",
        "a/b.rs": "use super::A; use super::c::C; pub struct B;",
        "a/c.rs": "pub struct C;",
    },
    "tests stand at the end of all arrows": {
        "a/mod.rs": "mod b; mod c;",
        "a/b.rs": "pub struct B; #[cfg(test)] mod tests { use super::super::c::C; fn f() {} }",
        "a/b_tests.rs": "use super::super::c::C;",
        "a/c.rs": "use super::b::B; pub struct C;",
    },
    "a path that says who may see is no name": {
        "a/mod.rs": "mod b; use b::B; fn f() -> B {}",
        "a/b.rs": "pub struct B; impl B { pub(in crate::a) fn g() {} pub(super) fn h() {} }",
    },
    "another crate's names": {
        "a.rs": "use std::b::B; use b::{A, C}; pub struct A;",
        "b.rs": "use crate::a::A; pub struct B;",
    },
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_what_is_no_circle_is_no_finding(name: str) -> None:
    assert list(circles(STRAIGHT[name])) == []


def test_a_circle_tells_who_names_what() -> None:
    ((_, told),) = circles(CIRCLES["two files"])
    assert told.splitlines() == [
        "a circle of a/b.rs, a/c.rs",
        "  a/b.rs names of a/c.rs: C",
        "  a/c.rs names of a/b.rs: B",
    ]
