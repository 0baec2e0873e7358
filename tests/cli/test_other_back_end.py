"""The client commands, and the driver in Python, with back-ends that are not ours."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import vhost_user as vu
from peer.process import eventually

from .command import LIMIT, run

PEERS = Path(__file__).parents[1] / "peers/std"
BUILD_LIMIT = 600.0


class Other(NamedTuple):
    """A back-end that serves ``image`` with two queues; what it offers of what it can."""

    socket: str
    features: set[str]
    protocol: set[str]


@pytest.fixture(scope="session")
def peers_disk() -> str:
    """The program on rust-vmm's ``vhost-user-backend``, built if it is not."""
    where = ["--locked", "--manifest-path", str(PEERS / "Cargo.toml"), "--bin", "peers-disk"]
    subprocess.run(["cargo", "build", "--quiet", *where], check=True, timeout=BUILD_LIMIT)
    target = os.environ.get("CARGO_TARGET_DIR", PEERS / "target")
    return str(Path(target, "debug/peers-disk"))


@pytest.fixture(params=["qemu-storage-daemon", "vhost-user-backend"])
def other(image: str, request: pytest.FixtureRequest) -> Iterator[Other]:
    if request.param == "qemu-storage-daemon":
        export = "type=vhost-user-blk,id=e,node-name=n,writable=on,num-queues=2"
        command = [
            *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=n,filename={image}"),
            *("--export", f"{export},addr.type=unix,addr.path=other.sock"),
        ]
        found = Other("other.sock", {"CONFIG_WCE"}, {"BACKEND_REQ"})
    else:
        command = [request.getfixturevalue("peers_disk"), "other.sock", image, "2"]
        found = Other("other.sock", {"SEG_MAX"}, {"RESET_DEVICE"})
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
        assert eventually(Path(found.socket).is_socket, LIMIT)
        yield found
        assert daemon.poll() is None
        daemon.terminate()
        daemon.wait(LIMIT)


def test_info_reads_it(other: Other) -> None:
    result = run("info", other.socket, "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert {"FLUSH", "MQ", "VERSION_1", *other.features} <= set(found["features"]["names"])
    protocol = found["protocol_features"]["names"]
    assert {"MQ", "REPLY_ACK", "CONFIG", "CONFIGURE_MEM_SLOTS", *other.protocol} <= set(protocol)
    assert found["num_queues"] == 2
    assert found["block"]["size"] == 1 << 20
    assert found["block"]["num_queues"] == 2


def test_the_driver_writes_its_image_and_reads_it_again(other: Other, image: str) -> None:
    content = bytes(range(256)) * 1024
    for place in (0, 512 * 7):
        with vu.VirtioBlkDriver.connect(other.socket, num_queues=2) as disk:
            disk.pwrite(content, place)
            disk.flush()
            assert Path(image).read_bytes()[place : place + len(content)] == content
            assert disk.pread(len(content), place) == content


@pytest.mark.parametrize(
    ("option", "feature"), [("--packed", "RING_PACKED"), ("--in-order", "IN_ORDER")]
)
def test_a_form_of_rings_that_it_has_not_is_refused_by_name(
    other: Other, option: str, feature: str
) -> None:
    result = run("bench", other.socket, option)
    problem = f"{other.socket}: the back-end does not offer {feature}"
    assert (result.status, result.out) == (3, "")
    assert result.err.startswith(f"vhost-user: {problem}")
    keyword = {"--packed": "packed", "--in-order": "in_order"}[option]
    with pytest.raises(vu.NegotiationError, match=f"does not offer {feature}"):
        vu.Frontend(other.socket, **{keyword: True})
    lines = run("info", other.socket).out.splitlines()
    assert "rings: split" in lines


def test_bench_drives_it_and_finds_its_data_right(other: Other) -> None:
    options = ["--numjobs", "2", "--runtime", "0.1", "--verify", "--json"]
    result = run("bench", other.socket, *options)
    assert result.status == 0
    found = json.loads(result.out)
    assert found["operations"] > 0
    assert (found["errors"], found["mismatches"]) == (0, 0)
