"""Importing the package costs nothing and starts nothing."""

import subprocess
import sys

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


def test_every_public_name_is_there() -> None:
    import vhost_user

    for name in vhost_user.__all__:
        assert getattr(vhost_user, name) is not None
    assert set(vhost_user.__all__) <= set(dir(vhost_user))
    assert vhost_user.__version__ == vhost_user._core.__version__
