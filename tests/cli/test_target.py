"""Which device ``vhost-user run`` serves."""

import subprocess
import sys
from pathlib import Path

import pytest

from .command import LIMIT, Server, run


def help_of(target: str) -> str:
    result = run("run", target, "--help")
    assert (result.status, result.err) == (0, "")
    return result.out


def test_help_after_a_target_is_that_of_its_class(ram: str) -> None:
    assert help_of("ram.py:Ram").splitlines() == [
        "usage: vhost-user run ram.py:Ram [key=value ...] --socket-path PATH",
        "",
        "A disk in memory.",
        "",
        "options, as key=value (numbers also as 64M or 1GiB):",
        "  size=    int  required",
        "  serial=  str  default ''",
        "",
        "vhost-user run --help tells the options of every device.",
    ]


def test_the_only_device_class_of_a_file_needs_no_name(ram: str) -> None:
    assert "A disk in memory." in help_of("ram.py")
    assert "A disk in memory." in help_of("./ram.py")


def test_a_module_on_the_path_will_do() -> None:
    assert "size=  int  required" in help_of("vhost_user.examples.ramdisk:RamDisk")
    assert "Random bytes" in help_of("vhost_user.examples.rng")


def test_a_module_in_this_directory_will_do_for_the_installed_command_too(ram: str) -> None:
    script = Path(sys.executable).parent / "vhost-user"
    words = [str(script), "run", "ram:Ram", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "A disk in memory." in done.stdout


@pytest.mark.parametrize("name", ["vhost_user.py", "argparse.py"])
def test_a_file_may_have_the_name_of_a_module_in_use(ram: str, name: str) -> None:
    Path("device").mkdir()
    path = Path(ram).rename(f"device/{name}")
    with Server("run", f"{path}:Ram", "size=64K", "--socket-path", "s.sock") as server:
        assert server.first_line == "listening on s.sock  blk 64 KiB 16 queues"


def test_a_file_can_import_what_lies_beside_it(ram: str) -> None:
    folder = Path("devices")
    folder.mkdir()
    Path(ram).rename(folder / "ram.py")
    (folder / "big.py").write_text("import ram\nclass Big(ram.Ram):\n    'Bigger.'\n")
    assert "Bigger." in help_of("devices/big.py:Big")


def test_a_function_that_makes_a_device_is_a_target(ram: str) -> None:
    with Path(ram).open("a") as file:
        file.write("\n\ndef small(serial: str = ''):\n    return Ram(512, serial=serial)\n")
    with Server("run", "ram.py:small", "--socket-path", "s.sock") as server:
        assert server.first_line == "listening on s.sock  blk 512 bytes 16 queues"


def test_settings_may_stand_before_and_after_options(ram: str) -> None:
    words = ["run", "--socket-path", "s.sock", "ram.py", "serial=x", "--once", "size=64K"]
    with Server(*words) as server:
        assert server.first_line == "listening on s.sock  blk 64 KiB 16 queues"


UNREADY = """
import vhost_user as vu


class NoSuper(vu.BlockDevice):
    def __init__(self):
        pass


class NoType(vu.Device):
    pass
"""


@pytest.mark.parametrize(
    ("target", "status", "problem"),
    [
        ("none.py:Ram", 1, "none.py: no such file"),
        ("no/such/place", 1, "no/such/place: no such file"),
        ("ram.py:Rum", 1, "ram.py has no Rum; did you mean Ram?"),
        ("ram.py:Ram.inner", 1, "ram.py has no Ram.inner"),
        ("two.py:a", 1, "two.py has no a (there: two.py:A, two.py:B)"),
        ("ram.py:vu.__version__", 1, "ram.py:vu.__version__ is neither a class nor a function"),
        (":Ram", 2, ":Ram: write FILE.py:Class or package.module:Class"),
        ("nosuch.module:X", 1, "cannot load nosuch.module: ModuleNotFoundError: "),
        ("typo.py:X", 1, "typo.py:2: NameError: name 'nmae' is not defined"),
        ("syntax.py:X", 1, "syntax.py:1: '(' was never closed"),
        ("exits.py:X", 1, "exits.py:1: SystemExit: 3"),
        (
            "two.py",
            2,
            "two.py: say which device class, as in two.py:Class (there: two.py:A, two.py:B)",
        ),
        ("empty.py", 2, "empty.py: say which device class, as in empty.py:Class (there: none)"),
        ("ram.py:dict", 1, "ram.py has no dict"),
        ("empty.py:make", 1, "empty.py:make gave an object of type int, not a vhost_user.Device"),
        ("empty.py:forget", 1, "empty.py:forget gave None, not a vhost_user.Device"),
        ("unready.py:NoSuper", 1, "NoSuper.__init__ must call super().__init__()"),
        ("unready.py:NoType", 1, "cannot serve NoType: TypeError: NoType has no device_id: "),
    ],
)
def test_a_target_that_cannot_be_served_is_one_line(
    ram: str, target: str, status: int, problem: str
) -> None:
    Path("typo.py").write_text("\nnmae\n")
    Path("syntax.py").write_text("(\n")
    Path("exits.py").write_text("raise SystemExit(3)\n")
    Path("two.py").write_text("from ram import Ram\nclass A(Ram): pass\nclass B(Ram): pass\n")
    Path("empty.py").write_text("make = int\ndef forget(): pass\n")
    Path("unready.py").write_text(UNREADY)
    result = run("run", target, "--socket-path", "s.sock")
    assert (result.status, result.out) == (status, "")
    assert problem in result.err
    assert result.err.count("\n") == 1
    assert not Path("s.sock").exists()


def test_an_error_in_a_constructor_is_one_line_and_with_debug_a_traceback(ram: str) -> None:
    words = ["run", "ram.py", "size=100", "--socket-path", "s.sock"]
    result = run(*words)
    problem = (
        "vhost-user: Ram(size=100) failed: ValueError: size is a multiple of 512 bytes, not 100\n"
    )
    assert (result.status, result.err) == (1, problem)
    result = run(*words, "--debug")
    assert result.status == 1
    assert "Traceback" in result.err
    assert result.err.endswith(problem)


def test_an_unknown_option_is_a_usage_error_with_a_hint(ram: str) -> None:
    result = run("run", "ram.py:Ram", "sise=64M", "--socket-path", "s.sock")
    problem = "Ram: no option 'sise'; did you mean size? (see vhost-user run ram.py:Ram --help)"
    assert result == (2, "", f"vhost-user: {problem}\n")
