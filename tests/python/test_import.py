"""Importing the package costs nothing and starts nothing."""

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "dataclasses", "logging", "inspect", "typing_extensions", "socket", "pytest"}


def loaded(*statements: str) -> set[str]:
    """The modules that a fresh interpreter has after some statements, and had not before."""
    count = "print(*(set(sys.modules) - before), len(__import__('os').listdir('/proc/self/task')))"
    program = "; ".join(["import sys", "before = set(sys.modules)", *statements, count])
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
        check=True,
        capture_output=True,
        text=True,
    )
    *modules, threads = result.stdout.split()
    assert threads == "1", "importing started a thread"
    return set(modules)


def test_the_package_alone_loads_nothing_else() -> None:
    modules = loaded("import vhost_user")
    assert {name for name in modules if name.startswith("vhost_user")} == {"vhost_user"}
    assert not modules & HEAVY


def test_no_name_of_it_brings_a_heavy_module_along() -> None:
    names = [
        f"vhost_user.{name}" for name in ("Backend", "BlockDevice", "FileDisk", "serve", "Rng")
    ]
    modules = loaded("import vhost_user", *names, "vhost_user.VirtioBlkDriver", "vhost_user.Device")
    assert "vhost_user._core" in modules
    assert not modules & HEAVY


IN_ANOTHER = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    another, run = interpreters.create({kind}), interpreters.exec
else:
    import _xxsubinterpreters as interpreters
    another, run = interpreters.create(isolated={isolated}), interpreters.run_string
run(another, '''
import sys
sys.path[:] = {path}
try:
    {statement}
    print("loaded", flush=True)
except ImportError as error:
    print(error, flush=True)
''')
"""

LOAD_CORE = """
    import importlib.util
    spec = importlib.util.spec_from_file_location("vhost_user._core", {path!r})
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("what", ["package", "extension module"])
def test_a_second_interpreter_is_refused(what: str, isolated: bool) -> None:
    """Of any kind, also when the main one has not loaded it."""
    import vhost_user._core

    core = LOAD_CORE.format(path=vhost_user._core.__file__).strip()
    statement = "import vhost_user" if what == "package" else core
    kind = "'isolated'" if isolated else "'legacy'"
    program = IN_ANOTHER.format(isolated=isolated, kind=kind, path=sys.path, statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    by_python = what == "extension module" and isolated and sys.version_info >= (3, 12)
    expected = "does not support loading in subinterpreters" if by_python else "main interpreter"
    assert expected in done.stdout


def test_every_public_name_is_there() -> None:
    import vhost_user

    for name in vhost_user.__all__:
        assert getattr(vhost_user, name) is not None
    assert set(vhost_user.__all__) <= set(dir(vhost_user))
    assert vhost_user.__version__ == vhost_user._core.__version__
