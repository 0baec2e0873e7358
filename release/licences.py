"""The licences of the crates whose code is in a wheel, and the notices that they ask for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALLOWED = {"Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-3-Clause", "MIT"}
OWN = "vhost-user-"
MODULE = "vhost-user-python"
TEXTS = re.compile(r"(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)([-._]?.*)?", re.IGNORECASE)

NOTICES = "LICENSE-THIRD-PARTY"
"""Its name is one of those that pyproject.toml calls licences."""

HEAD = """\
The extension module of this package has code of the following projects in it. What each of them is
licensed by stands beside its name, and the texts that it comes with stand below.

The Rust standard library (MIT OR Apache-2.0), https://www.rust-lang.org
    Copyright (c) The Rust Project Contributors. Its licences' texts are those of the crates below.
"""


@dataclass(frozen=True, order=True)
class Crate:
    """A crate that is linked into the module."""

    name: str
    version: str
    licence: str
    home: str
    directory: Path

    def texts(self) -> Iterator[tuple[str, str]]:
        """Each licence or notice that the crate comes with: file and text."""
        for path in sorted(self.directory.iterdir()):
            if path.is_file() and TEXTS.fullmatch(path.name):
                yield path.name, path.read_text(encoding="utf-8", errors="replace").strip()


def linked(manifest: Path, target: str, cargo: str = "cargo") -> list[Crate]:
    """The crates of others that the module has in it for ``target``."""
    command = [cargo, "metadata", "--format-version=1", "--locked", f"--filter-platform={target}"]
    told = subprocess.run(
        [*command, "--manifest-path", str(manifest)], stdout=subprocess.PIPE, text=True, check=True
    )
    return crates_of(json.loads(told.stdout))


def crates_of(metadata: Mapping[str, Any]) -> list[Crate]:
    """The same, from what ``cargo metadata`` says."""
    packages = {package["id"]: package for package in metadata["packages"]}
    arrows = {
        node["id"]: [d["pkg"] for d in node["deps"] if None in {k["kind"] for k in d["dep_kinds"]}]
        for node in metadata["resolve"]["nodes"]
    }
    ahead = [key for key, package in packages.items() if package["name"] == MODULE]
    reached: set[str] = set()
    while ahead:
        key = ahead.pop()
        if key not in reached and not _runs_at_build(packages[key]):
            reached.add(key)
            ahead += arrows[key]
    return sorted(
        _crate(packages[key]) for key in reached if not packages[key]["name"].startswith(OWN)
    )


def forbidden(crates: list[Crate]) -> Iterator[str]:
    """Crates whose licence is none of the allowed ones, or whose text is missing."""
    for crate in crates:
        if not is_allowed(crate.licence):
            yield f"{crate.name} {crate.version} is licensed by {crate.licence or 'nothing'}"
        if not list(crate.texts()):
            yield f"{crate.name} {crate.version} comes without the text of its licence"


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression leaves an allowed choice. Old ones have ``/`` for ``OR``."""
    words = re.sub(r"[()]", " ", expression.replace("/", " OR "))
    alternatives = re.split(r"\s+OR\s+", words.strip())
    return any(
        all(part.strip() in ALLOWED for part in re.split(r"\s+AND\s+", one)) for one in alternatives
    )


def notices(crates: list[Crate]) -> str:
    """The file that goes with the wheels. A text that several crates have stands there once."""
    lines = [HEAD]
    texts: dict[str, list[str]] = {}
    for crate in crates:
        lines.append(f"{crate.name} {crate.version} ({crate.licence}), {crate.home}")
        for name, text in crate.texts():
            texts.setdefault(text, []).append(f"{crate.name}: {name}")
    for text, owners in texts.items():
        lines += ["", "-" * 72, "\n".join(owners), "-" * 72, "", text]
    return "\n".join(lines) + "\n"


def _runs_at_build(package: Mapping[str, Any]) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def _crate(package: Mapping[str, Any]) -> Crate:
    return Crate(
        name=package["name"],
        version=package["version"],
        licence=package["license"] or "",
        home=package["repository"] or package["homepage"] or "",
        directory=Path(package["manifest_path"]).parent,
    )
