"""The borders of the project's modules, and what crosses them.

Data flows one way. The control plane (`socket`, `wire`, `connection`) knows nothing of memory and
rings, the data plane (`memory`, `ring`, `request`, `worker`) never sees a message, both meet in
`backend`, and the core as a whole knows no interpreter.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from .rust_source import lines_with, module_of, modules_named

MAY_NAME = {
    "address": set(),
    "error": set(),
    "ring_position": set(),
    "token": set(),
    "sys": set(),
    "wire": {"address", "sys"},
    "socket": {"wire", "sys", "error"},
    "connection": {"wire", "address", "ring_position"},
    "xen": {"sys"},
    "memory": {"address", "sys", "xen"},
    "ring": {"memory", "address", "ring_position", "token"},
    "request": {"memory", "sys", "token"},
    "batch_size": set(),
    "device": {"request", "batch_size", "memory"},
    "state": {"device", "sys"},
    "metrics": {"socket", "sys", "error"},
    "block": {"device", "request", "batch_size", "memory", "sys", "error"},
    "worker": {
        *("device", "request", "ring", "memory"),
        *("sys", "address", "ring_position", "token", "error", "metrics"),
    },
    "backend": {
        *("socket", "wire", "connection", "worker", "ring_position"),
        *("ring", "memory", "request", "device", "xen", "sys", "address", "error", "state"),
        "metrics",
    },
    "frontend": {"socket", "wire", "address", "sys", "error"},
    "hold": {"socket", "wire", "sys", "error"},
    "xen_guest": {"frontend", "xen", "wire", "address", "error"},
}
"""Which top-level modules of the core each may name, beside itself."""

TESTS_MAY_NAME = {"block": {"ring", "address", "token"}, "xen_guest": {"sys"}}
"""What the tests of a module may name beyond that, in files of their own: they stand at the other
end of what the module serves."""

CORE_CRATE = "vhost_user_core"
BINDING_MAY_NAME = {
    *("backend", "socket", "device", "batch_size", "block", "request", "memory", "error"),
    *("frontend", "hold", "address", "xen_guest", "metrics"),
}
"""Which modules of the core the binding may name: neither protocol nor rings, and of memory what
requests are made of, and what a front-end tells."""

DEVICES_KNOW_NOTHING_OF = {
    "socket",
    "selectors",
    "select",
    "threading",
    "asyncio",
    "mmap",
    "server",
}
"""What no device class imports, be it Python's or the package's."""

UNSAFE_CORE = re.compile(r"sys/\w+\.rs|memory/(segment|window|span|reads)\.rs|xen/linux\.rs")
UNSAFE_PYTHON = re.compile(
    r"(buffer|call|descriptor|exporter|interpreter|object|pages|raw_bytes)\.rs"
)
"""The files of each crate in which `unsafe` may stand, relative to `src`."""

FOREIGN = ("pyo3", "PyO3")
CLOCKS_THAT_ARE_SET = ("SystemTime", "CLOCK_REALTIME", "Realtime")
TELLS_THE_TIME = {"socket/listener.rs", "cli/lines.py"}
"""The files that may read such a clock, and not to wait: for a name that nobody else has, and for
the time of day in lines of the log."""
NOISE = ("print", "println", "eprint", "eprintln", "dbg")
IMPORTS_CORE = {
    *("__init__.py", "server.py", "errors.py", "testing/xen.py"),
    *("cli/keeper.py", "cli/child.py"),
}
"""The Python files that may import the extension module, relative to the package; `__init__` is the
typed façade, `testing/xen.py` that of what only tests have, `cli/` that of processes."""


def arrows_crossed(source: str, path: str) -> Iterator[str]:
    """Names in a file of the core that its module may not use. `path` is relative to `src`."""
    module = module_of(path)
    if not module:
        return  # lib.rs declares the modules
    more = TESTS_MAY_NAME.get(module[0], set()) if "tests" in module else set()
    for name in sorted(modules_named(source, path) - {module[0]}):
        if module[0] not in MAY_NAME:
            yield f"{path}: the module {module[0]} has no row in the table of borders"
        elif name not in MAY_NAME[module[0]] | more:
            yield f"{path}: {module[0]} names {name}"


def unsafe_outside(source: str, path: str, allowed: re.Pattern[str]) -> Iterator[str]:
    """`unsafe` and its permission in a file that may not have them."""
    if not allowed.fullmatch(path):
        for word in ("unsafe", "unsafe_code"):
            for line in lines_with(source, word):
                yield f"{path}:{line}: {word}"


def impure(source: str, path: str) -> Iterator[str]:
    """What no file of the core may do: print, end the process, know Python."""
    for word in [f"{name}!" for name in NOISE] + ["process::exit", "process::abort", *FOREIGN]:
        for line in lines_with(source, word):
            yield f"{path}:{line}: {word}"


def clocks_that_are_set(source: str, path: str) -> Iterator[str]:
    """A clock that somebody may set, so that a wait by it never ends or ends at once."""
    if path not in TELLS_THE_TIME:
        for word in CLOCKS_THAT_ARE_SET:
            for line in lines_with(source, word):
                yield f"{path}:{line}: {word}"


def set_clocks_called(source: str, path: str) -> Iterator[str]:
    """The same of a Python file: `time.time()`, `time.time_ns()` and the clocks of `datetime`."""
    if path in TELLS_THE_TIME:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns", "now", "utcnow"):
            yield f"{path}:{node.lineno}: {node.attr}"


def core_imports(source: str, path: str) -> Iterator[str]:
    """Imports of the extension module in a Python file that may not have them."""
    if path in IMPORTS_CORE:
        return
    for line, names in imports(source):
        if any("_core" in name.split(".") for name in names):
            yield f"{path}:{line}: imports _core"


def imports(source: str) -> Iterator[tuple[int, list[str]]]:
    """Each import statement of a Python file: its line, and the full names that it imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield node.lineno, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, [f"{node.module or ''}.{alias.name}" for alias in node.names]


def too_deep(source: str, path: str) -> Iterator[str]:
    """Modules of the core that a file of the binding names and may not."""
    for name in sorted(modules_named(source, path, CORE_CRATE) - BINDING_MAY_NAME):
        yield f"{path}: the binding names {name}"


def in_circles(named: dict[str, set[str]]) -> set[str]:
    """The modules that name each other in a circle, or name one that does. `named`: which modules
    of the same folder each names."""
    left = dict(named)
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    return left.keys() & named.keys()


def not_a_devices_business(source: str, path: str) -> Iterator[str]:
    """Imports that no device class may have."""
    for line, names in imports(source):
        for name in names:
            if DEVICES_KNOW_NOTHING_OF & set(name.split(".")):
                yield f"{path}:{line}: a device class imports {name}"


def sources(root: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Source text and path of each file below `root`."""
    for path in sorted(root.rglob(pattern)):
        yield path.read_text(), path.relative_to(root).as_posix()
