"""What `vhost-user doctor` finds, on this host and on others whose files are laid out here."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vhost_user.cli.health import confinement, hypervisor, limits, memory
from vhost_user.cli.health.finding import Finding
from vhost_user.cli.health.host import Host

from .command import Result, Server, run

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="root can become another user")


def checks(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(result.out)["checks"]}


def test_this_host_serves() -> None:
    result = run("doctor", "--json")
    assert (result.status, result.err) == (0, "")
    assert json.loads(result.out)["ok"] is True
    found = checks(result)
    assert found["serving"] == {
        "name": "serving",
        "state": "ok",
        "found": "a disk was served in this process, written and read",
        "advice": "",
    }
    assert found["kernel"]["found"].startswith(f"Linux {os.uname().release}")


def test_people_get_a_line_for_each_finding_and_a_last_one() -> None:
    result = run("doctor")
    lines = result.out.splitlines()
    assert lines[0].startswith("ok     version ")
    assert lines[-1] == "nothing is wrong"


def limited(kind: int, value: int) -> Result:
    def limit() -> None:
        resource.setrlimit(kind, (value, value))

    return run("doctor", "--json", preexec_fn=limit)


def test_too_few_descriptors_are_wrong_and_say_what_to_do() -> None:
    result = limited(resource.RLIMIT_NOFILE, 100)
    assert result.status == 1
    assert checks(result)["descriptors"] == {
        "name": "descriptors",
        "state": "wrong",
        "found": "100 at a time, up to 100 if asked for (RLIMIT_NOFILE)",
        "advice": "raise it: ulimit -n 4096, or LimitNOFILE=4096 in a unit",
    }


def test_a_device_that_cannot_be_served_is_wrong_and_says_why() -> None:
    # The disk's image of 1 MiB is memory, and the guest's memory a file: neither fits.
    result = limited(resource.RLIMIT_FSIZE, 4096)
    found = checks(result)["serving"]
    assert (result.status, found["state"]) == (1, "wrong")
    assert found["found"].startswith("a disk cannot be served in this process: ")


def test_a_limit_of_the_address_space_is_a_note() -> None:
    result = limited(resource.RLIMIT_AS, 16 << 30)
    found = checks(result)["address space"]
    assert (result.status, found["state"]) == (0, "note")
    assert found["found"].startswith(
        "16 GiB, in which the whole memory of a guest has to be mapped"
    )


# Hosts by their files.


def host(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


def named(findings: Iterator[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_reserved_huge_pages_are_counted(tmp_path: Path) -> None:
    pages = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    there = host(tmp_path, {f"{pages}/nr_hugepages": "8\n", f"{pages}/free_hugepages": "3\n"})
    found = named(memory.look(there), "huge pages")
    assert (found.state, found.found) == ("ok", "3 of 8 pages of 2 MiB free")
    found = named(memory.look(Host(tmp_path / "absent")), "huge pages")
    assert (found.state, found.found) == ("note", "none are reserved; guests do without")


def test_too_few_mappings_are_wrong(tmp_path: Path) -> None:
    there = host(tmp_path, {"/proc/sys/vm/max_map_count": "500\n"})
    assert named(memory.look(there), "mappings").state == "wrong"


@pytest.mark.parametrize(("used", "state"), [("100", "ok"), ("65000", "wrong")])
def test_asynchronous_io_that_is_used_up_is_wrong(tmp_path: Path, used: str, state: str) -> None:
    there = host(
        tmp_path, {"/proc/sys/fs/aio-max-nr": "65536\n", "/proc/sys/fs/aio-nr": f"{used}\n"}
    )
    found = named(limits.look(there), "signals")
    assert (found.state, found.found) == (state, f"{used} of 65536 in use (fs.aio-max-nr)")
    assert found.advice == ("raise it: sysctl fs.aio-max-nr=1048576" if state == "wrong" else "")


def test_who_may_use_io_uring_is_told(tmp_path: Path) -> None:
    there = host(tmp_path, {"/proc/sys/kernel/io_uring_disabled": "2\n"})
    assert named(limits.look(there), "io_uring").found.startswith("nobody may use it")


XEN: dict[str, Any] = {"/sys/hypervisor/type": "xen\n", "/proc/xen/capabilities": "control_d\n"}


@pytest.mark.parametrize(
    ("files", "state", "text"),
    [
        ({}, "ok", "this is no host of Xen; --xen has nothing to map here"),
        (
            {**XEN, "/dev/xen/privcmd": ""},
            "wrong",
            "this is dom0 of Xen, without /dev/xen/gntdev",
        ),
        (
            {**XEN, "/dev/xen/privcmd": "", "/dev/xen/gntdev": ""},
            "ok",
            "this is dom0 of Xen, with /dev/xen/privcmd and /dev/xen/gntdev",
        ),
    ],
)
def test_a_host_of_xen_needs_its_devices(
    tmp_path: Path, files: dict[str, str], state: str, text: str
) -> None:
    found = named(hypervisor.look(host(tmp_path, files)), "xen")
    assert (found.state, found.found) == (state, text)


def test_what_confines_qemu_is_a_note(tmp_path: Path) -> None:
    there = host(tmp_path, {"/sys/fs/selinux/enforce": "1"})
    found = named(confinement.look(there), "confinement")
    assert (found.state, found.found[:14]) == ("note", "SELinux is on,")


# Sockets.


@pytest.fixture
def server(image: str, socket_path: Path) -> Iterator[Path]:
    socket_path.parent.chmod(0o711)
    with Server("blk", image, "--socket-path", str(socket_path)):
        yield socket_path


def rights(path: Path | str, *words: str) -> tuple[int, str, str, str]:
    result = run("doctor", "--socket", str(path), "--json", *words)
    found = checks(result)["socket rights"]
    return result.status, found["state"], found["found"], found["advice"]


def test_a_socket_that_this_user_may_use_is_right(server: Path) -> None:
    result = run("doctor", "--socket", str(server))
    assert result.status == 0
    assert f"{server} has mode 0600, owner " in result.out


@ROOT_ONLY
def test_a_socket_is_looked_at_as_the_user_of_the_machine(server: Path) -> None:
    assert rights(server, "--user", "nobody") == (
        1,
        "wrong",
        f"user nobody may not connect to {server}",
        "start the back-end with --mode 0660 and --group for a group that the user is in",
    )
    server.chmod(0o666)
    assert rights(server, "--user", "nobody")[:3] == (0, "ok", f"user nobody may use {server}")
    server.parent.chmod(0o700)
    assert rights(server, "--user", "nobody") == (
        1,
        "wrong",
        f"user nobody may not enter {server.parent}",
        f"let the user through: chmod o+x {server.parent}, or put the socket elsewhere",
    )


def test_a_socket_is_looked_at_without_a_connection(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        listener.setblocking(False)
        assert run("doctor", "--socket", str(socket_path)).status == 0
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("absent.sock", "absent.sock: No such file or directory"),
        ("disk.img", "disk.img is no socket"),
        ("x" * 120, "the path has 120 bytes, and 107 fit into a socket's address"),
    ],
)
def test_what_is_no_socket_is_wrong(image: str, path: str, problem: str) -> None:
    result = run("doctor", "--socket", path, "--json")
    assert result.status == 1
    assert problem in checks(result)["socket"]["found"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--user", "nobody"], "--user needs --socket"),
        (["--socket", "s", "--user", "nosuchuser"], "--user nosuchuser: there is no such user"),
    ],
)
def test_a_wrong_command_line_of_the_doctor_is_one_line(words: list[str], problem: str) -> None:
    result = run("doctor", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err == f"vhost-user: {problem}\n"
