"""``vhost-user info``."""

import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peer.front_end import FrontEnd

from .command import LIMIT, Server, command, run

CONFIG_OF_A_MIB = {
    "size": 1 << 20,
    "capacity_sectors": 2048,
    "seg_max": 126,
    "blk_size": 512,
    "num_queues": 2,
    "writeback": 1,
}


def test_a_disk_tells_features_queues_limits_and_configuration(image: str) -> None:
    with Server("blk", "--blk-file", image, "--num-queues", "2", "--socket-path", "d.sock"):
        result = run("info", "d.sock", "--json")
        assert (result.status, result.err) == (0, "")
        found = json.loads(result.out)
    assert (found["socket"], found["type"], found["type_is_guessed"]) == ("d.sock", "block", True)
    features = {"SEG_MAX", "BLK_SIZE", "FLUSH", "TOPOLOGY", "CONFIG_WCE", "MQ", "VERSION_1"}
    assert features <= set(found["features"]["names"])
    assert "RO" not in found["features"]["names"]
    assert int(found["features"]["value"], 16) & 1 << 32
    assert found["protocol_features"]["names"] == [
        *("MQ", "LOG_SHMFD", "REPLY_ACK", "BACKEND_REQ", "PAGEFAULT", "CONFIG", "INFLIGHT_SHMFD"),
        *("RESET_DEVICE", "CONFIGURE_MEM_SLOTS", "STATUS", "DEVICE_STATE"),
        *("GET_VRING_BASE_INFLIGHT", "GPA_ADDRESSES"),
    ]
    assert (found["num_queues"], found["max_mem_slots"]) == (2, 509)
    assert found["block"].items() >= CONFIG_OF_A_MIB.items()


def test_people_get_the_same_in_lines(image: str) -> None:
    with Server("blk", "--blk-file", image, "--read-only", "--socket-path", "d.sock"):
        result = run("info", "d.sock")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "d.sock"
    assert "queues: 16" in lines
    assert "memory slots: 509" in lines
    assert "size: 1048576 bytes (1 MiB)" in lines
    assert "  capacity_sectors: 2048" in lines
    assert any("RO," in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_a_socket_whose_name_is_no_text_is_shown_all_the_same(ram: str) -> None:
    name = os.fsdecode(b"\xff.sock")
    with Server("run", ram, "size=64K", "--socket-path", name):
        result = run("info", name)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("\\udcff.sock\n")


def test_another_device_is_not_read_as_a_disk() -> None:
    words = ["run", "vhost_user.examples.rng", "--socket-path", "r.sock"]
    with Server(*words) as server:
        assert server.first_line == "listening on r.sock  rng 1 queue"
        for also in (["--type", "other"], []):
            found = json.loads(run("info", "r.sock", "--json", *also).out)
            assert "block" not in found
            assert "CONFIG" not in found["protocol_features"]["names"]
            assert (found["type"], found["type_is_guessed"]) == (None, False)
        lines = run("info", "r.sock").out.splitlines()
        assert lines[1] == "type: not known (--type TYPE tells it)"
        assert run("info", "r.sock", "--type", "rng").out.splitlines()[1] == "type: rng"


def test_a_network_device_is_recognised_and_its_bits_have_its_names() -> None:
    with Server("run", "vhost_user.examples.echo", "pairs=2", "--socket-path", "n.sock"):
        lines = run("info", "n.sock").out.splitlines()
        found = json.loads(run("info", "n.sock", "--json").out)
        told = run("info", "n.sock", "--type", "net").out.splitlines()
        other = run("info", "n.sock", "--type", "other").out.splitlines()
    assert (found["type"], found["type_is_guessed"], found["num_queues"]) == ("net", True, 2)
    assert {"MRG_RXBUF", "MQ"} <= set(found["features"]["names"])
    assert lines[1] == "type: net (guessed)"
    assert "queues: 2 pairs" in lines
    assert [told[1], *told[2:]] == ["type: net", *lines[2:]]
    assert "queues: 2 (of a network device: pairs)" in other
    assert any("bit 15" in line for line in other)


def test_a_type_that_there_is_not_is_a_wrong_command_line() -> None:
    result = run("info", "n.sock", "--type", "nett")
    assert (result.status, result.out) == (2, "")
    assert "no device type 'nett'; did you mean net?" in result.err


def test_asking_leaves_the_back_end_as_it_was(ram: str) -> None:
    with Server("run", ram, "size=64K", "--socket-path", "ram.sock") as server:
        for _ in range(3):
            assert run("info", "ram.sock").status == 0
        with FrontEnd.connect("ram.sock").start() as peer:
            assert peer.blk().read(0, 512).data == bytes(512)
        assert server.end() == (0, "", "")


@pytest.mark.parametrize("words", [["info"], ["bench", "--runtime", "0.1"]])
def test_nobody_at_the_socket_is_status_5(words: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("dead.sock")
    Path("file").write_text("")
    hint = "; does a back-end listen there?"
    for path, problem in (
        ("none.sock", f"No such file or directory{hint}"),
        ("dead.sock", f"Connection refused{hint}"),
        ("file", f"Connection refused{hint}"),
        ("a" * 200, "AF_UNIX path too long"),
    ):
        result = run(*words, path)
        assert (result.status, result.out) == (5, "")
        assert result.err == f"vhost-user: cannot connect to {path}: {problem}\n"


def test_a_back_end_that_is_taken_is_status_5_with_a_hint(ram: str) -> None:
    with (
        Server("run", ram, "size=64K", "--socket-path", "ram.sock"),
        FrontEnd.connect("ram.sock").start(),
    ):
        result = run("info", "ram.sock", "--timeout", "0.2")
    assert result.status == 5
    assert result.err.startswith("vhost-user: ram.sock: GET_")
    assert "is another front-end connected?" in result.err


@pytest.mark.parametrize("words", [["info"], ["bench"]])
def test_ctrl_c_ends_the_wait_for_an_answer(words: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("silent.sock")
        listener.listen()
        asker = subprocess.Popen(
            command(*words, "silent.sock", "--timeout", "3600"), stderr=subprocess.PIPE, text=True
        )
        connected, _ = listener.accept()
        with connected:
            assert len(connected.recv(4096)) == 12  # GET_FEATURES: from now on it waits.
            asker.send_signal(signal.SIGINT)
            assert asker.communicate(timeout=LIMIT)[1] == ""
            assert asker.returncode == 130
            assert connected.recv(1) == b""


@contextmanager
def liar(answer: bytes) -> Iterator[str]:
    """A back-end that gives ``answer`` to whatever comes first, and hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("liar.sock")
        listener.listen()

        def lie() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.recv(4096)
                connected.sendall(answer)

        thread = threading.Thread(target=lie)
        thread.start()
        yield "liar.sock"
        thread.join()


@pytest.mark.parametrize("words", [["info"], ["bench", "--runtime", "0.1"]])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack("=IIIQ", 77, 0x5, 8, 0),
        struct.pack("=IIIQ", 1, 0x1, 8, 0),
        struct.pack("=III", 1, 0x5, 1 << 30),
    ],
    ids=["hangs up", "speaks HTTP", "answers another", "sends no reply", "announces a gigabyte"],
)
def test_a_peer_that_breaks_the_protocol_is_status_3(words: list[str], answer: bytes) -> None:
    with liar(answer) as path:
        result = run(*words, path)
    assert (result.status, result.out) == (3, "")
    assert result.err.startswith(f"vhost-user: {path}: ")
    assert result.err.count("\n") == 1
