"""Loads the module of each wheel on the oldest C libraries that are in reach.

``python3 -m release.load DIRECTORY`` does so without an interpreter, since none that is new enough
comes with a C library that old: a small program stands for it, which has the names that an
interpreter has. The loader looks up every other symbol, and refuses the module if one is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rig.archive import ArchiveError
from rig.tree import CACHE

from . import symbols
from .kinds import Platform, kind_of
from .roots import OLDEST

LIMIT = 60.0
"""Seconds for one module."""

PROGRAM = """
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **words) {
    void *module = count > 1 ? dlopen(words[1], RTLD_NOW) : 0;
    if (!module || !(dlsym(module, "PyInit__core") || dlsym(module, "PyModExport__core"))) {
        puts(dlerror());
        return 1;
    }
    return 0;
}
"""


def interpreter(module: Path, platform: Platform, to: Path) -> None:
    """Makes the program that stands for an interpreter, with the names that ``module`` wants."""
    needed = symbols.needs(module).symbols
    names = sorted({symbol.name for symbol in needed if symbols.PYTHON.fullmatch(symbol.name)})
    source = to.with_suffix(".c")
    source.write_text(PROGRAM + "".join(f"char {name}[64];\n" for name in names))
    libc = "gnu." + ".".join(map(str, platform.version)) if platform.libc == "glibc" else "musl"
    target = f"{platform.machine}-linux-{libc}"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-dynamic", "-rdynamic"]
    cache = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig")}
    subprocess.run([*command, "-o", str(to), str(source), "-ldl"], env=cache, check=True)


def fault(wheel: Path) -> str:
    """Why a wheel's module does not load; nothing if it does."""
    platform = kind_of(wheel.name).platform
    (root,) = (root for root in OLDEST if root.machine == platform.machine)
    with tempfile.TemporaryDirectory(prefix="vhost-user-load-") as directory:
        given = Path(directory)
        with zipfile.ZipFile(wheel) as packed:
            (name,) = (
                n for n in packed.namelist() if n.startswith("vhost_user/_core.") and ".so" in n
            )
            (given / "module.so").write_bytes(packed.read(name))
        interpreter(given / "module.so", platform, given / "interpreter")
        done = root.run(["/given/interpreter", "/given/module.so"], given, LIMIT)
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip() or "it died"


def main() -> int:
    """Says of each wheel whether its module loads."""
    parser = argparse.ArgumentParser(prog="python3 -m release.load", description=__doc__)
    parser.add_argument("directory", type=Path)
    failed = 0
    try:
        for wheel in sorted(parser.parse_args().directory.glob("*.whl")):
            found = fault(wheel)
            failed += bool(found)
            print(f"{wheel.name}: {found or 'loads'}", flush=True)
    except ArchiveError as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
