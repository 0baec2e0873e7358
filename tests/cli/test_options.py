"""Every option that takes a value says what it takes, when it is given something else."""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from vhost_user.cli import COMMANDS
from vhost_user.cli.exits import Exit, Failure
from vhost_user.cli.parser import Parser

from .command import run

MAX_64 = "18446744073709551615"
TYPES = "no device type '-1': net, block, console"

SERVERS = {
    "--fd": ("-1", "'-1' is not a number from 0 to 2147483647"),
    "--mode": ("888", "'888' is not an octal mode such as 0660"),
    "--group": ("4294967295", "'4294967295' is not a number from 0 to 4294967294"),
    "--give-up-after": ("-1", "'-1' is not a number from 0 to 1000000"),
    "--threads": ("0", "'0' is not a number from 1 to 65535, nor per-queue"),
    "--cpus": ("65536", "'65536' has a processor past 65535, the last there can be"),
    "--batch": ("0", "'0' is not a number from 1 to 32768"),
    "--poll-us": ("1000001", "'1000001' is not a number from 0 to 1000000"),
    "--drain": ("86401", "'86401' is not a number of seconds from 0 to 86400"),
    "--copy-budget": ("-1", f"'-1' is not a number from 0 to {MAX_64}"),
    "--total-copy-budget": ("16E", f"'16E' is not a number from 0 to {MAX_64}"),
    "--on-error": ("raise", "invalid choice: 'raise' (choose from 'report', 'stop')"),
    "--log-level": ("loud", "(choose from 'debug', 'info', 'warning', 'error')"),
    "--metrics": ("0.0.0.0:9100", "use 127.0.0.1:9100 and a proxy that asks who it is"),
    "--log-format": ("xml", "(choose from 'text', 'json', 'journal')"),
    "--stats": ("0", "'0' is not a number of seconds from 0.1 to 86400"),
    "--xen": ("new", "'new' is none of auto, merged, review, message"),
    "--xen-domain": ("32752", "domain is 0 to 32751, not 32752"),
    "--xen-copy-below": ("-1", "copy_below is 0 to 9223372036854775807, not -1"),
}
CLIENTS = {"--timeout": ("0", "'0' is not a number of seconds from 0.001 to 86400")}
HELD = ("--fd", "--mode", "--group", "--give-up-after", "--log-format")

WRONG: dict[str, dict[str, tuple[str, str]]] = {
    "blk": SERVERS
    | {
        "--block-size": ("77", "'77' is not a power of two from 512 to 65536"),
        "--num-queues": ("0", "'0' is not a number from 1 to 256"),
        "--queue-size": ("48", "'48' is not a power of two from 2 to 32768"),
        "--serial": ("x" * 21, "serial has at most 20 bytes, not 21"),
    },
    "run": SERVERS,
    "hold": {name: SERVERS[name] for name in HELD},
    "info": CLIENTS | {"--type": ("-1", TYPES)},
    "bench": CLIENTS
    | {
        "--rw": ("trim", "(choose from 'randread', 'randwrite', 'read', 'write')"),
        "--bs": ("1000", "'1000' is not a multiple of 512 bytes from 512 to 4294966784"),
        "--iodepth": ("0", "'0' is not a number from 1 to 32768"),
        "--numjobs": ("257", "'257' is not a number from 1 to 256"),
        "--runtime": ("nan", "'nan' is not a number of seconds from 0.001 to 86400"),
    },
    "snippet": {
        "--for": ("vmware", "invalid choice: 'vmware' (choose from "),
        "--type": ("-1", TYPES),
        "--queues": ("0", "'0' is not a number from 1 to 256"),
        "--memory": ("1023K", f"'1023K' is not a number from 1048576 to {MAX_64}"),
        "--vmm-version": ("new", "'new' is not a version"),
    },
    "doctor": {},
    "ctl": CLIENTS,
    "top": CLIENTS
    | {
        "--interval": ("0", "'0' is not a number of seconds from 0.1 to 86400"),
        "--count": ("0", "'0' is not a number from 1 to 1000000000"),
    },
    "new": {"--type": ("-1", TYPES)},
    "completion": {},
    "man": {},
    "demo": {
        "--size": ("513", "'513' is not a multiple of 512 bytes from 512 to 9223372036854775296"),
        "--seconds": ("-1", "'-1' is not a number of seconds from 0.001 to 86400"),
    },
}
"""For each command and option: a value that is wrong, and what is said of it."""

TEXT = {
    *("--socket-path", "--blk-file", "--image", "--device"),
    *("--socket", "--user", "--program", "--run", "--control"),
}
"""Options that take any text: a path, or what a file names."""


def _parser(command: str) -> Parser:
    # As the command makes it: `run` shows a help of its own.
    parser = Parser(command, "x", add_help=command != "run")
    importlib.import_module(f"vhost_user.cli.{command}").configure(parser)
    return parser


def _valued(parser: argparse.ArgumentParser) -> set[str]:
    """The options that take a value, by all their names."""
    actions = parser._actions
    return {name for a in actions if a.nargs != 0 for name in a.option_strings}


def _cases() -> Iterator[tuple[str, str, str, str]]:
    for command, options in WRONG.items():
        for option, (value, said) in options.items():
            yield command, option, value, said


def test_no_option_is_left_out() -> None:
    assert set(WRONG) == set(COMMANDS)
    for command, options in WRONG.items():
        assert _valued(_parser(command)) - TEXT == set(options), command


@pytest.mark.parametrize(("command", "option", "value", "said"), list(_cases()))
def test_a_wrong_value_is_a_usage_error_that_says_what_is_taken(
    command: str, option: str, value: str, said: str
) -> None:
    with pytest.raises(Failure) as caught:
        _parser(command).parse([f"{option}={value}"])
    assert caught.value.status == Exit.USAGE
    told = str(caught.value)
    assert told.startswith(f"argument {option}")
    assert said in told
    assert told.endswith(f"(see vhost-user {command} --help)")


NO_TEXT = {"--serial", "--group"}
"""Options for which any word that is short is a value."""


@pytest.mark.parametrize(
    ("command", "option"), [(c, o) for c, o, *_ in _cases() if o not in NO_TEXT]
)
def test_a_word_is_no_value_either(command: str, option: str) -> None:
    with pytest.raises(Failure, match=rf"^argument {option}.*many") as caught:
        _parser(command).parse([f"{option}=many"])
    assert caught.value.status == Exit.USAGE


@pytest.mark.parametrize(
    "option",
    ["--num-queues=0", "--block-size=77", "--queue-size=3", f"--serial={21 * 'x'}", "--batch=0"],
)
def test_a_wrong_value_is_told_before_a_missing_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("blk", "none.img", "--socket-path", "x.sock", option)
    assert (result.status, result.out) == (Exit.USAGE, "")
    assert result.err.startswith(f"vhost-user: argument {option.partition('=')[0]}: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--bs", "--copy-budget", "--num-queues"])
def test_a_size_in_units_of_two_meanings_says_which_to_write(option: str) -> None:
    command = "bench" if option == "--bs" else "blk"
    with pytest.raises(Failure, match="'64MB': write 64M for units of 1024"):
        _parser(command).parse([f"{option}=64MB"])
