"""Which crates are in a wheel, and whether their licences let them be there."""

from pathlib import Path

import pytest

from release.licences import Crate, crates_of, forbidden, is_allowed, linked, notices
from release.source import PROJECT


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT OR GPL-2.0-only", True),
        ("MIT/Apache-2.0", True),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", True),
        ("GPL-2.0-only", False),
        ("MIT AND GPL-2.0-only", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_if_it_leaves_an_allowed_choice(
    expression: str, allowed: bool
) -> None:
    assert is_allowed(expression) == allowed


def package(name: str, kind: str = "lib") -> dict[str, object]:
    return {
        "id": name,
        "name": name,
        "version": "1.0.0",
        "license": "MIT",
        "repository": "https://example.org",
        "homepage": None,
        "manifest_path": f"/{name}/Cargo.toml",
        "targets": [{"kind": [kind]}],
    }


def node(name: str, **deps: str | None) -> dict[str, object]:
    arrows = [{"pkg": to, "dep_kinds": [{"kind": kind}]} for to, kind in deps.items()]
    return {"id": name, "deps": arrows}


def test_what_runs_at_build_or_in_tests_is_not_linked() -> None:
    metadata = {
        "packages": [
            package("vhost-user-python"),
            package("direct"),
            package("below"),
            package("macros", "proc-macro"),
            package("builder"),
            package("tester"),
        ],
        "resolve": {
            "nodes": [
                node("vhost-user-python", direct=None, macros=None, builder="build", tester="dev"),
                node("direct", below=None),
                node("below"),
                node("macros"),
                node("builder"),
                node("tester"),
            ]
        },
    }
    assert [crate.name for crate in crates_of(metadata)] == ["below", "direct"]


def test_the_crates_of_the_module_are_known_and_allowed() -> None:
    crates = linked(PROJECT / "Cargo.toml", "x86_64-unknown-linux-gnu")
    assert {"pyo3", "pyo3-ffi", "parking_lot", "rustix", "libc"} <= {c.name for c in crates}
    assert not {"pyo3-macros", "syn", "proptest", "loom"} & {c.name for c in crates}
    assert list(forbidden(crates)) == []


def crate(directory: Path, name: str, licence: str, text: str | None) -> Crate:
    place = directory / name
    place.mkdir()
    if text is not None:
        (place / "LICENSE-MIT").write_text(text)
    return Crate(name, "1.0.0", licence, "https://example.org", place)


def test_a_crate_without_a_text_or_with_another_licence_is_named(tmp_path: Path) -> None:
    crates = [crate(tmp_path, "a", "MIT", None), crate(tmp_path, "b", "GPL-2.0-only", "text")]
    assert list(forbidden(crates)) == [
        "a 1.0.0 comes without the text of its licence",
        "b 1.0.0 is licensed by GPL-2.0-only",
    ]


def test_the_notices_name_each_crate_and_have_each_text_once(tmp_path: Path) -> None:
    crates = [crate(tmp_path, name, "MIT", "the same words") for name in ("a", "b")]
    text = notices(crates)
    assert "a 1.0.0 (MIT), https://example.org" in text
    assert "b 1.0.0 (MIT), https://example.org" in text
    assert text.count("the same words") == 1
