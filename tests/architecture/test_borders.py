"""The borders hold in the sources, and the check sees it when they do not."""

from pathlib import Path

import pytest

from . import borders
from .rust_source import ROOT, module_of, modules_named

PROJECT = Path(__file__).parents[2]
CORE = PROJECT / "rust/core/src"
BINDING = PROJECT / "rust/python/src"
PACKAGE = PROJECT / "python/vhost_user"


def test_the_check_reads_the_sources() -> None:
    paths = {path for _, path in borders.sources(CORE, "*.rs")}
    assert {"lib.rs", "ring/split.rs", "memory/span.rs", "wire/mod.rs", "backend/mod.rs"} <= paths
    assert (BINDING / "lib.rs").is_file()
    assert (PACKAGE / "server.py").is_file()


def test_every_module_has_a_row_in_the_table() -> None:
    modules = {module_of(path)[:1] for _, path in borders.sources(CORE, "*.rs")} - {()}
    assert {name for (name,) in modules} <= borders.MAY_NAME.keys()


def test_the_table_has_no_way_back() -> None:
    """Arrows that lead in a circle would be no borders."""
    resolved: set[str] = set()
    while ready := {
        name
        for name, named in borders.MAY_NAME.items()
        if name not in resolved and named <= resolved
    }:
        resolved |= ready
    assert resolved == borders.MAY_NAME.keys()


def test_modules_name_only_what_the_arrows_allow() -> None:
    crossed = [
        line
        for source, path in borders.sources(CORE, "*.rs")
        for line in borders.arrows_crossed(source, path)
    ]
    assert crossed == []


def test_unsafe_stands_only_in_its_files() -> None:
    found = [
        f"{root.parent.name}/{line}"
        for root, allowed in ((CORE, borders.UNSAFE_CORE), (BINDING, borders.UNSAFE_PYTHON))
        for source, path in borders.sources(root, "*.rs")
        for line in borders.unsafe_outside(source, path, allowed)
    ]
    assert found == []


def test_files_with_unsafe_say_so_in_their_first_lines() -> None:
    for root in (CORE, BINDING):
        for source, path in borders.sources(root, "*.rs"):
            if "unsafe_code" in source:
                head = source.split("\nuse ")[0]
                assert "#![allow(unsafe_code)] //" in head, f"{path}: permission without a reason"


def test_the_core_neither_prints_nor_exits_nor_knows_python() -> None:
    found = [
        line
        for source, path in borders.sources(CORE, "*.rs")
        for line in borders.impure(source, path)
    ]
    assert found == []
    assert "pyo3" not in (CORE.parent / "Cargo.toml").read_text()


def test_no_wait_goes_by_a_clock_that_can_be_set() -> None:
    found = [
        f"{root.parent.name}/{line}"
        for root in (CORE, BINDING)
        for source, path in borders.sources(root, "*.rs")
        for line in borders.clocks_that_are_set(source, path)
    ]
    found += [
        line
        for source, path in borders.sources(PACKAGE, "*.py")
        for line in borders.set_clocks_called(source, path)
    ]
    assert found == []


def test_only_the_facade_imports_the_extension_module() -> None:
    found = [
        line
        for source, path in borders.sources(PACKAGE, "*.py")
        for line in borders.core_imports(source, path)
    ]
    assert found == []


def test_the_binding_knows_neither_protocol_nor_rings() -> None:
    found = [
        line
        for source, path in borders.sources(BINDING, "*.rs")
        for line in borders.too_deep(source, path)
    ]
    assert found == []


def test_no_files_of_the_binding_stand_in_a_circle() -> None:
    named = {
        path.removesuffix(".rs"): modules_named(source, path) - {ROOT, path.removesuffix(".rs")}
        for source, path in borders.sources(BINDING, "*.rs")
        if path != "lib.rs"
    }
    assert {"backend", "traits"} <= named.keys()
    assert borders.in_circles(named) == set()


def test_device_classes_know_no_sockets_and_no_threads() -> None:
    found = [
        line
        for source, path in borders.sources(PACKAGE / "devices", "*.py")
        for line in borders.not_a_devices_business(source, path)
    ]
    assert found == []


# The check itself.


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("connection/mod.rs", "use crate::memory::Memory;"),
        ("connection/features.rs", "use crate::{address::GuestAddr, ring};"),
        ("connection/mod.rs", "fn f() { crate::socket::bind() }"),
        ("connection/mod.rs", "mod inner { use super::super::ring; }"),
        ("ring/split.rs", "use super::super::wire::Frame;"),
        ("ring/mod.rs", "pub fn f(a: super::connection::Action) {}"),
        ("worker.rs", "use super::{request::{Batch, Request as R}, wire::*};"),
        ("wire/mod.rs", "use crate::{self as root};"),
        ("wire/mod.rs", "use crate as root;"),
        ("memory/region.rs", "use crate::*;"),
        ("frontend/mod.rs", "const SIZE: u16 = crate::ring::MAX_CHAIN;"),
        ("frontend/blk.rs", "type T = Vec<crate::request::Request>;"),
        ("backend.rs", "#[cfg(test)] mod tests { use super::super::frontend::Frontend; }"),
        ("block/disk.rs", "use crate::ring::SplitRing;"),
        ("block/tests/driver.rs", "use crate::wire::Frame;"),
        ("novelty.rs", "use crate::memory;"),
    ],
)
def test_a_forbidden_arrow_is_seen(path: str, source: str) -> None:
    assert list(borders.arrows_crossed(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("connection/mod.rs", "// use crate::memory::Memory;\nuse crate::wire::Frame;"),
        ("connection/mod.rs", 'const TEXT: &str = "crate::memory \\" crate::ring";'),
        ("connection/mod.rs", 'const TEXT: &str = r#"use crate::ring" "#;'),
        ("connection/mod.rs", "/* crate::ring */ pub(crate) fn f<'a>(self, c: char) {}"),
        ("ring/split.rs", "use super::{MAX_CHAIN, need_event}; use crate::memory::{Memory, view};"),
        ("ring/split.rs", "mod tests { use super::super::event; }"),
        ("ring/split_tests.rs", "use super::super::event;"),
        ("block/tests/driver.rs", "use crate::ring::SplitRing;"),
        ("connection/mod.rs", "fn f() { let c = '{'; self.x() } mod tests { use super::*; }"),
    ],
)
def test_an_allowed_name_is_no_finding(path: str, source: str) -> None:
    assert list(borders.arrows_crossed(source, path)) == []


def test_paths_are_followed_to_their_top_level_module() -> None:
    source = "use crate::{self, a::{b, c::d}, e as f}; use super::g; fn h() { crate::i::<T>() }"
    assert modules_named(source, "ring/split.rs") == {ROOT, "a", "e", "ring", "i"}
    assert modules_named(source, "worker.rs") == {ROOT, "a", "e", "g", "i"}


@pytest.mark.parametrize("line", ["unsafe { f() }", "#![allow(unsafe_code)]", "unsafe impl S {}"])
def test_unsafe_in_another_file_is_seen(line: str) -> None:
    for path in ("ring/split.rs", "memory/region.rs", "sys.rs", "memory/span/part.rs"):
        assert list(borders.unsafe_outside(line, path, borders.UNSAFE_CORE))
    for path in ("sys/mmap.rs", "memory/window.rs"):
        assert list(borders.unsafe_outside(line, path, borders.UNSAFE_CORE)) == []
    assert list(borders.unsafe_outside(line, "sys/mmap.rs", borders.UNSAFE_PYTHON))


@pytest.mark.parametrize(
    "line",
    ['println!("x")', "std::process::exit(1)", "use std::process::abort;", "use pyo3::prelude::*;"],
)
def test_impure_code_is_seen(line: str) -> None:
    assert list(borders.impure(f"fn f() {{\n{line}\n}}", "ring/split.rs"))
    assert list(borders.impure(f'fn f() {{ let a = "{line!r}"; }}', "ring/split.rs")) == []


def test_a_clock_that_can_be_set_is_seen() -> None:
    wait = "fn f() { while SystemTime::now() < until {} }"
    assert list(borders.clocks_that_are_set(wait, "worker/thread.rs"))
    assert list(borders.clocks_that_are_set("use std::time::Instant;", "worker/thread.rs")) == []
    assert list(borders.set_clocks_called("until = time.time() + 5", "server.py"))
    assert list(borders.set_clocks_called("until = time.monotonic() + 5", "server.py")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import vhost_user._core",
        "from vhost_user import _core as c",
        "from ._core import Backend",
        "from . import _core",
        "def f():\n    from .._core import Backend",
    ],
)
def test_an_import_of_the_extension_module_is_seen(line: str) -> None:
    assert list(borders.core_imports(line, "blk.py"))
    assert list(borders.core_imports(line, "server.py")) == []


@pytest.mark.parametrize(
    "line",
    [
        "use vhost_user_core::{device::Device, ring::SplitRing};",
        "fn f() { vhost_user_core::wire::Frame::new() }",
        "use vhost_user_core as core;",
        "use vhost_user_core::*;",
    ],
)
def test_a_binding_that_reaches_too_deep_is_seen(line: str) -> None:
    assert list(borders.too_deep(line, "device.rs"))
    assert list(borders.too_deep("use vhost_user_core::backend::{self, Event};", "lib.rs")) == []


def test_a_circle_is_seen() -> None:
    assert borders.in_circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert borders.in_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "line",
    ["import socket", "from threading import Lock", "from ..server import Backend"],
)
def test_a_device_class_that_knows_too_much_is_seen(line: str) -> None:
    assert list(borders.not_a_devices_business(line, "blk.py"))
    assert list(borders.not_a_devices_business("import os\nfrom ..errors import A", "blk.py")) == []
