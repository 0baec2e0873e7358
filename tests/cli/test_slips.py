"""What one types first, and what one types wrong: it works, or the answer says what to write."""

import os
import subprocess
from pathlib import Path

import pytest
from peer.blk import Status
from peer.front_end import FrontEnd

from .command import LIMIT, Server, command, run


def test_a_plain_path_is_the_image(image: str) -> None:
    for words in (
        ["blk", image, "--socket-path", "d.sock"],
        ["blk", "--socket-path", "d.sock", "--read-only", image],
        ["blk", "--socket-path", "d.sock", "--", image],
    ):
        with Server(*words) as server:
            assert server.first_line == "listening on d.sock  blk 1 MiB 16 queues"
            with FrontEnd.connect("d.sock").start() as peer:
                assert peer.blk().read(0, 512).status == Status.OK
            assert server.end() == (0, "", "")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["blk", "a.img", "--blk-file", "b.img"], "one image is given twice: IMAGE or --blk-file"),
        (["blk", "--blk-file", "a", "--image", "b"], "given twice: one command serves one disk"),
        (["blk", "a.img", "a.sock"], "arguments: a.sock; a socket is told by --socket-path a.sock"),
        (["blk", "a.img", "b.img", "--socket-path", "s"], "unrecognized arguments: b.img (see"),
        (["blk", "a.img", "b.img", "--fd", "0"], "unrecognized arguments: b.img (see"),
        (["blk", "a.img"], "--socket-path PATH or --fd N: one is needed"),
        (["blk", "a.img", "-q", "--fd", "0"], "unrecognized arguments: -q"),
        (["blk", "a.img", "--serail", "x"], "--serail x; did you mean --serial?"),
        (["blk", "a.img", "-v", "--log-level", "debug"], "not allowed with argument"),
        (["-v", "blk", "a.img"], "-v: options come behind the command: vhost-user blk -v ..."),
        (["disk.img"], "a command is needed before disk.img: vhost-user blk disk.img"),
        (["ram.py:Ram"], "a command is needed before ram.py:Ram: vhost-user run ram.py:Ram"),
    ],
)
def test_a_slip_of_the_command_line_is_one_line_that_says_what_to_write(
    image: str, ram: str, words: list[str], problem: str
) -> None:
    result = run(*words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("vhost-user: ")
    assert problem in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--poll-us", "99999999999999999999", "is not a number from 0 to 1000000"),
        (
            "--threads",
            "99999999999",
            "is not a number from 1 to 65535, nor per-queue",
        ),
        ("--batch", "99999999999", "'99999999999' is not a number from 1 to 32768"),
        ("--group", "99999999999", "'99999999999' is not a number from 0 to 4294967294"),
        ("--cpus", "0-99999999999", "'0-99999999999' has a processor past 65535"),
    ],
)
def test_a_number_that_is_too_large_is_one_line_with_the_range(
    image: str, option: str, value: str, problem: str
) -> None:
    result = run("blk", image, "--socket-path", "s.sock", option, value)
    assert (result.status, result.out) == (2, "")
    assert problem in result.err
    assert result.err.count("\n") == 1
    assert not Path("s.sock").exists()


@pytest.mark.parametrize("place", ["disk.img", "./disk.img", "disk.img:Disk"])
def test_an_image_is_no_device_class(image: str, place: str) -> None:
    result = run("run", place, "--socket-path", "x")
    assert result.status == 1
    assert "not a Python file" in result.err
    assert "an image is served by: vhost-user blk IMAGE" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "level"),
    [([], "warning"), (["-v"], "info"), (["-vv"], "debug"), (["-vvv"], "debug")],
)
def test_verbose_shows_more_of_the_log(image: str, option: list[str], level: str) -> None:
    with Server("blk", image, "--socket-path", "d.sock", *option) as server:
        with FrontEnd.connect("d.sock").start() as peer:
            assert peer.blk().read(0, 512).status == Status.OK
        result = server.end()
    lines = [server.first_line, *result.err.splitlines()]
    shown = {line.partition(":")[0] for line in lines} & {"debug", "info", "warning", "error"}
    assert shown == {"warning": set(), "info": {"info"}, "debug": {"info", "debug"}}[level]
    assert result.status == 0


# Bytes that are no text.


def served(*words: str | bytes, **environment: str) -> tuple[int, str]:
    """How a command that cannot serve ends, and what it says."""
    done = subprocess.run(
        [*command(), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
        env=os.environ | environment,
    )
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_a_serial_number_that_is_no_text_is_refused_in_plain_words(image: str, locale: str) -> None:
    status, said = served(
        *("blk", image, "--socket-path", "x", "--serial", b"\xff\xfe"), LC_ALL=locale
    )
    what = "serial is text in UTF-8, and holds bytes that are none: '\\udcff\\udcfe'"
    what = f"argument --serial: {what} (see vhost-user blk --help)"
    assert (status, said) == (2, f"vhost-user: {what}\n")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_serial_number_in_utf_8_is_taken_in_any_locale(
    image: str, monkeypatch: pytest.MonkeyPatch, locale: str
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    with (
        Server("blk", image, "--socket-path", "d.sock", "--serial", "Plätte 1"),
        FrontEnd.connect("d.sock").start() as peer,
    ):
        assert peer.blk().get_id().data.rstrip(b"\0").decode() == "Plätte 1"
    status, said = served("blk", image, "--socket-path", "x", "--serial", "ä" * 11)
    assert status == 2
    assert said.startswith("vhost-user: argument --serial: serial has at most 20 bytes, not 22: ")


@pytest.mark.parametrize(
    "words",
    [
        ["blk", b"\xff.img", "--socket-path", "x"],
        ["blk", "disk.img", "--socket-path", b"none/\xff"],
        ["blk", "disk.img", "--socket-path", "x", "--group", b"\xff"],
        ["blk", "disk.img", "--socket-path", "x", "--mode", b"\xff"],
        ["blk", "disk.img", "--socket-path", "x", "--stats", b"\xff"],
        ["blk", "disk.img", "--socket-path", "x", b"--\xff"],
        ["blk", "disk.img", b"\xff", "--socket-path", "x"],
        ["run", b"\xff.py", "--socket-path", "x"],
        ["run", "ram.py", "size=1M", b"serial=\xff", "--socket-path", "x"],
        ["run", "ram.py", "size=1M", b"\xff=1", "--socket-path", "x"],
        [b"\xff"],
    ],
)
def test_bytes_that_are_no_text_are_an_error_of_one_line_wherever_they_stand(
    image: str, ram: str, words: list[str | bytes]
) -> None:
    status, said = served(*words, LC_ALL="C")
    assert status in (1, 2)
    assert said.startswith("vhost-user: ")
    assert said.count("\n") == 1
    assert "codec" not in said
    assert "Traceback" not in said
    assert Path(image).stat().st_size == 1 << 20
