"""Completions and the manual page, which are made from the parsers of all commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from vhost_user.cli import COMMANDS
from vhost_user.cli.tree import tree

from .command import LIMIT, command, run


def completed(*words: str) -> list[str]:
    """What bash offers for the last word."""
    Path("script").write_text(run("completion", "bash").out)
    asked = f"""
        shopt -s extglob
        source ./script
        COMP_WORDS=(vhost-user {" ".join(f"'{word}'" for word in words)})
        COMP_CWORD={len(words)}
        COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}} COMP_TYPE=9
        function compopt {{ :; }}
        "$(complete -p vhost-user | grep -o -- '-F [^ ]*' | cut -c 4-)" vhost-user
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", asked], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_commands() -> None:
    assert set(completed("")) >= set(COMMANDS)
    assert completed("sni") == ["snippet"]


def test_bash_completes_options_and_their_values() -> None:
    assert completed("blk", "--read") == ["--read-only"]
    assert completed("snippet", "--fo") == ["--for"]
    assert completed("snippet", "d.sock", "--for", "fire") == ["firecracker"]
    assert completed("blk", "--log-format", "j") == ["json", "journal"]


def test_bash_completes_files(image: str) -> None:
    assert image in completed("blk", "dis")
    assert image in completed("blk", "--blk-file", "dis")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_has_every_command(shell: str) -> None:
    result = run("completion", shell)
    assert (result.status, result.err) == (0, "")
    for name in COMMANDS:
        assert name in result.out


def test_bash_finds_no_fault_in_its_script() -> None:
    script = run("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=script, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0


def test_the_page_has_every_command_and_option() -> None:
    page = run("man").out.replace("\\-", "-").replace("\\", "")
    for name in COMMANDS:
        assert f"vhost-user {name}" in page, name
    for option in ("--socket-path", "--log-format", "--for", "--hold", "--iodepth"):
        assert option in page


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_man_shows_the_page_without_a_warning() -> None:
    page = run("man").out
    done = subprocess.run(
        ["man", "--warnings", "--local-file", "-"],
        input=page,
        env=os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MANROFFOPT": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^VHOST-USER\(1\) +User Commands +VHOST-USER\(1\)", done.stdout)
    assert "measure the block device at a socket" in done.stdout


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [(["completion", "bash"], "shtab", "completion"), (["man"], "argparse_manpage", "man")],
)
def test_what_is_not_installed_is_one_line(words: list[str], module: str, extra: str) -> None:
    Path(f"{module}.py").write_text("raise ImportError")
    done = subprocess.run(
        command(*words),
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"is not installed: pip install 'vhost-user[{extra}]'\n")
    assert done.stderr.count("\n") == 1


def test_the_tree_takes_what_the_commands_take() -> None:
    options = tree().parse_args(["blk", "disk.img", "--socket-path", "d.sock", "--read-only"])
    assert (str(options.image), options.read_only) == ("disk.img", True)


def test_commands_import_neither_tool() -> None:
    script = "import sys, vhost_user.cli as cli; cli.main(['blk', '--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert {"shtab", "argparse_manpage"} & set(done.stdout.split()) == set()
