"""The client commands with a back-end that is not ours: qemu-storage-daemon."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer.process import eventually

from .command import LIMIT, run


@pytest.fixture
def storage_daemon(image: str) -> Iterator[str]:
    """Its socket; it serves ``image`` with two queues."""
    export = "type=vhost-user-blk,id=e,node-name=n,writable=on,num-queues=2"
    with subprocess.Popen(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=n,filename={image}"),
            *("--export", f"{export},addr.type=unix,addr.path=qsd.sock"),
        ]
    ) as daemon:
        assert eventually(Path("qsd.sock").is_socket, LIMIT)
        yield "qsd.sock"
        daemon.terminate()
        daemon.wait(LIMIT)


def test_info_reads_it(storage_daemon: str) -> None:
    result = run("info", storage_daemon, "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert {"FLUSH", "MQ", "CONFIG_WCE", "VERSION_1"} <= set(found["features"]["names"])
    protocol = found["protocol_features"]["names"]
    assert {"MQ", "REPLY_ACK", "CONFIG", "BACKEND_REQ", "CONFIGURE_MEM_SLOTS"} <= set(protocol)
    assert found["num_queues"] == 2
    assert found["block"]["size"] == 1 << 20
    assert found["block"]["num_queues"] == 2


def test_bench_drives_it_and_finds_its_data_right(storage_daemon: str) -> None:
    options = ["--numjobs", "2", "--runtime", "0.1", "--verify", "--json"]
    result = run("bench", storage_daemon, *options)
    assert result.status == 0
    found = json.loads(result.out)
    assert found["operations"] > 0
    assert (found["errors"], found["mismatches"]) == (0, 0)
