"""What holds for the command as a whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import vhost_user
from vhost_user.cli import COMMANDS

from .command import LIMIT, command, run


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.status == 0
    assert result.err == ""
    listed = [line.split()[0] for line in result.out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    result = run(name, "--help")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"usage: vhost-user {name} ")
    assert "--debug" in result.out


def test_the_version_is_the_packages() -> None:
    assert run("--version") == (0, f"vhost-user {vhost_user.__version__}\n", "")


def test_the_installed_command_is_the_same() -> None:
    script = Path(sys.executable).parent / "vhost-user"
    done = subprocess.run(
        [script, "--version"], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert done.stdout == run("--version").out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], f"a command is needed: {', '.join(COMMANDS)} (see vhost-user --help)"),
        (["bkl"], "unknown command bkl; did you mean blk?"),
        (["frobnicate"], "unknown command frobnicate (see vhost-user --help)"),
        (["--versoin"], "unknown option --versoin; did you mean --version?"),
        (
            ["blk", "--socket-path", "x"],
            "one image is needed: its path (see vhost-user blk --help)",
        ),
        (["blk", "--blk-file", "x"], "--socket-path PATH or --fd N: one is needed"),
        (
            ["blk", "--blk-file", "x", "--socket-path", "x", "--fd", "3"],
            "--socket-path PATH or --fd N: not both",
        ),
        (
            ["blk", "--blk-file", "x", "--socket-path", "x", "--socket-path", "y"],
            "--socket-path is given twice: one command serves one socket",
        ),
        (["blk", "--blk-file", "x", "--fd", "3", "--connect"], "--connect needs --socket-path"),
        (["blk", "--blk-file", "x", "--num-queues", "many"], "'many' is not a number"),
        (["blk", "--mode", "rw"], "'rw' is not an octal mode such as 0660"),
        (["blk", "--mode", "07777"], "'07777' is not an octal mode such as 0660"),
        (["blk", "--cpus", "a-b"], "'a-b' is not a list of processors such as 0,2-3"),
        (["blk", "--cpus", "3-1"], "'3-1' is not a list of processors such as 0,2-3"),
        (["blk", "--cpus", "0,"], "'0,' is not a list of processors such as 0,2-3"),
        (["blk", "--drain", "-1"], "'-1' is not a number of seconds from 0 to 86400"),
        (["blk", "--drain", "nan"], "'nan' is not a number of seconds from 0 to 86400"),
        (["run", "--sock", "x"], "unrecognized arguments: --sock; did you mean --socket-path?"),
        (["blk", "--blk-file", "x", "--pol-us=1"], "--pol-us=1; did you mean --poll-us?"),
        (
            ["run", "ram.py", "--size=1M"],
            "--size=1M; an option of the device class is written size=VALUE",
        ),
        (["run"], "a target is needed: FILE.py:Class"),
        (["info"], "the following arguments are required: SOCKET"),
        (["bench", "x", "--bs", "1000"], "--bs: '1000' is not a multiple of 512 bytes from 512"),
        (["bench", "x", "--iodepth", "0"], "--iodepth: '0' is not a number from 1 to 32768"),
        (
            ["bench", "x", "--runtime", "0"],
            "--runtime: '0' is not a number of seconds from",
        ),
        (["demo", "size=1M"], "key=value needs --device"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(words: list[str], problem: str) -> None:
    result = run(*words)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("vhost-user: ")
    assert problem in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("words", [["blk"], [], ["--nonsense", "blk", "--fd"], ["info"]])
def test_capabilities_are_printed_whatever_else_is_given(words: list[str]) -> None:
    result = run(*words, "--print-capabilities")
    assert (result.status, result.err) == (0, "")
    assert json.loads(result.out) == {"type": "block", "features": ["blk-file", "read-only"]}


def test_capabilities_of_a_device_class_have_its_type(ram: str) -> None:
    for words, kind in (
        ([f"{ram}:Ram", "--socket-path", "x", "size=1M"], "block"),
        (["--socket-path", "x", f"{ram}:Ram"], "block"),
        (["vhost_user.examples.rng"], "rng"),
    ):
        result = run("run", *words, "--print-capabilities")
        assert (result.status, result.err) == (0, "")
        assert json.loads(result.out) == {"type": kind}


def test_only_what_a_command_needs_is_imported() -> None:
    script = "import sys, vhost_user.cli as cli; cli.main(['blk', '--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "vhost_user.cli.blk" in loaded
    unwanted = {
        "vhost_user._core",
        "vhost_user.cli.demo",
        "logging",
        "asyncio",
        "json",
        "typing_extensions",
    }
    assert loaded & unwanted == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["blk", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, words: list[str], unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(LIMIT) in (0, 1)


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--version"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT
        )
    assert done.returncode == 1
    assert done.stderr == "vhost-user: cannot write the output: No space left on device\n"
