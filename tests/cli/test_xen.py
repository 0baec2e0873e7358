"""Options for front-ends on Xen."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import vhost_user as vu
import vhost_user.xen
from peer.blk import Status
from peer.front_end import WANTED, FrontEnd
from peer.numbers import ProtocolFeature, Request
from peer.wire import region
from vhost_user.cli.xen import summary

from .command import Server, run

BLK = ("blk", "--blk-file", "disk.img", "--socket-path", "disk.sock")
GRANT = 0x2


def refusal(server: Server, peer: FrontEnd, domain: int) -> str:
    """What the server says of a granted region of ``domain``, whose descriptor is no device."""
    described = region(1 << 63, 4096, 0, 0) + struct.pack("<II", GRANT, domain)
    nothing = os.open("/dev/null", os.O_RDWR)
    answer = peer.channel.acknowledged(Request.ADD_MEM_REG, bytes(8) + described, [nothing])
    os.close(nothing)
    assert answer != 0
    assert server.process.stderr is not None
    return server.process.stderr.readline()


@pytest.mark.parametrize("words", [["--xen"], ["--xen=auto"], ["--xen=merged"], ["--xen", "auto"]])
def test_xen_is_offered_when_asked_for_and_ordinary_front_ends_are_served(
    image: str, words: list[str]
) -> None:
    for extra, offered in ((words, 1), ([], 0)):
        with Server(*BLK, *extra), FrontEnd.connect("disk.sock").start() as peer:
            assert peer.protocol_offered >> 17 & 1 == offered
            assert peer.blk().write(3, b"x" * 512).status == Status.OK
            assert peer.blk().read(3, 512).data == b"x" * 512


def test_the_start_line_has_what_is_served(image: str) -> None:
    with Server(*BLK, "--xen=merged", "--xen-domain=3") as server:
        begin = "listening on disk.sock  blk 1 MiB 16 queues  xen merged domain 3"
        assert server.first_line.startswith(begin)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["privcmd", "gntdev"], "xen auto"),
        (["privcmd"], "xen auto, without {0}/gntdev"),
        ([], "xen auto, without {0}/privcmd and {0}/gntdev"),
    ],
)
def test_the_start_line_has_the_devices_that_are_missing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, there: Sequence[str], said: str
) -> None:
    devices = (directory / "privcmd", directory / "gntdev")
    monkeypatch.setattr(vhost_user.xen, "DEVICES", tuple(map(str, devices)))
    for name in there:
        (directory / name).touch()
    assert summary(vu.XenOptions()) == said.format(directory)


def test_memory_of_another_domain_than_the_given_is_refused(image: str) -> None:
    accepted = WANTED | ProtocolFeature.XEN_MMAP
    words = ["--xen", "--xen-domain", "3"]
    with Server(*BLK, *words) as server, FrontEnd.connect("disk.sock") as peer:
        peer.negotiate(protocol=accepted)
        assert "xen domain id 4: only domain 3 is served" in refusal(server, peer, 4)
        assert "only domain 3" not in refusal(server, peer, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--xen=mergd"], "'mergd' is none of auto, merged, review, message"),
        (["--xen-domain=3"], "--xen-domain needs --xen"),
        (["--xen-copy-below=4K"], "--xen-copy-below needs --xen"),
        (["--xen", "--xen-domain=32752"], "--xen-domain: domain is 0 to 32751, not 32752"),
        (["--xen", "--xen-domain=guest"], "--xen-domain: 'guest' is not a number"),
        (["--xen", "--xen-copy-below=-1"], "copy_below is 0 to 9223372036854775807, not -1"),
    ],
)
def test_wrong_options_are_refused_by_name(image: str, words: list[str], said: str) -> None:
    result = run(*BLK, *words)
    assert result.status == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["run", "--xen", "ram.py", "size=64K", "--socket-path", "ram.sock"], "ram.py"),
        (["run", "ram.py", "--xen", "size=64K", "--socket-path", "ram.sock"], "size=64K"),
    ],
)
def test_a_word_that_is_taken_for_a_design_is_told_how_not_to(
    ram: str, words: list[str], lost: str
) -> None:
    result = run(*words)
    assert result.status == 2
    assert f"{lost!r} is none of" in result.err
    assert "write --xen=auto" in result.err


def test_bytes_to_copy_are_taken_as_a_size(image: str) -> None:
    with Server(*BLK, "--xen", "--xen-copy-below=64K"), FrontEnd.connect("disk.sock").start():
        pass
