"""What `vhost-user snippet` prints for each program and device.

QEMU and libvirt read such lines in tests/guest/test_snippet.py. The others are not to be had here:
what is expected of them stands in their own documents, which the modules of `cli/vmm` name.
"""

import json
from pathlib import Path

import pytest

from .command import Server, run

QEMU_MEMORY = (
    "-m 512M -object memory-backend-memfd,id=mem,size=512M,share=on "
    "-machine memory-backend=mem \\\n"
)
CONSOLE = """
import vhost_user as vu


class Console(vu.Device):
    device_id = 3

    def __init__(self) -> None:
        super().__init__(num_queues=2, queue_size=64)
"""
CARD = CONSOLE.replace("device_id = 3", "device_id = 1").replace("num_queues=2", "num_queues=6")
RAM = """
import vhost_user as vu


class Disk(vu.BlockDevice):
    def __init__(self) -> None:
        super().__init__(size=1 << 20, num_queues=2)
"""


def of_class(text: str, vmm: str, *words: str) -> str:
    """The lines for a device class in a file."""
    Path("device.py").write_text(text)
    result = run("snippet", "device.py", "--socket-path", "d.sock", "--for", vmm, *words)
    assert result.status == 0, result.err
    return result.out


@pytest.mark.parametrize(
    ("version", "again"),
    [("7.2", "reconnect=1"), ("9.1", "reconnect=1"), ("9.2", "reconnect-ms=1000")],
)
def test_qemu_reconnects_in_the_words_of_its_version(image: str, version: str, again: str) -> None:
    with Server("blk", image, "--socket-path", "d.sock", "--num-queues", "2"):
        result = run("snippet", "d.sock", "--for", "qemu", "--vmm-version", version)
    assert (result.status, result.out) == (
        0,
        (
            f"{QEMU_MEMORY}-chardev socket,id=vu0,path=d.sock,{again} \\\n"
            "-device vhost-user-blk-pci,chardev=vu0,num-queues=2\n"
        ),
    )
    assert result.err.startswith(f"note: for qemu {version}\n")


def test_the_program_is_asked_for_its_version_and_its_devices(image: str) -> None:
    fake = Path("qemu")
    fake.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "--version) echo QEMU emulator version 8.0.2;;\n"
        "-device) echo 'name \"vhost-user-blk-pci\", bus PCI';;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    with Server("blk", image, "--socket-path", "d.sock"):
        found = run("snippet", "d.sock", "--for", "qemu", "--program", "./qemu", "--json")
        absent = run(
            *("snippet", "vhost_user.examples.rng", "--socket-path", "r.sock"),
            *("--for", "qemu", "--program", "./qemu"),
        )
    shown = json.loads(found.out)
    assert (shown["version"], shown["program"], shown["type"]) == ("8.0", "./qemu", "block")
    assert "socket,id=vu0,path=d.sock,reconnect=1" in shown["arguments"]
    assert (absent.status, absent.err) == (
        1,
        (
            "vhost-user: QEMU 8.0 has no device for a back-end of type rng; "
            "QEMU 11.1 has a generic one, vhost-user-test-device-pci\n"
        ),
    )


def test_a_disk_with_many_queues_gets_four_and_a_note(image: str) -> None:
    with Server("blk", image, "--socket-path", "d.sock"):
        some = run("snippet", "d.sock", "--for", "qemu", "--vmm-version", "11.1")
        all_of_them = run("snippet", "d.sock", "--for", "cloud-hypervisor", "--queues", "16")
        too_many = run("snippet", "d.sock", "--for", "qemu", "--queues", "17")
    assert ",num-queues=4\n" in some.out
    assert "note: one queue for each vCPU is best; the device has 16 queues\n" in some.err
    assert ",num_queues=16," in all_of_them.out
    assert (too_many.status, too_many.err) == (
        2,
        "vhost-user: --queues is 17, and the device has 16\n",
    )


def test_a_type_without_a_device_of_its_own_gets_the_generic_one() -> None:
    assert of_class(CONSOLE, "qemu", "--vmm-version", "11.1") == (
        f"{QEMU_MEMORY}-chardev socket,id=vu0,path=d.sock \\\n"
        "-device vhost-user-test-device-pci,chardev=vu0,virtio-id=3,num_vqs=2,vq_size=64\n"
    )


def test_a_network_device_is_a_netdev_with_its_pairs() -> None:
    assert of_class(CARD, "qemu", "--vmm-version", "10.0").splitlines()[1:] == [
        "-chardev socket,id=vu0,path=d.sock,reconnect-ms=1000 \\",
        "-netdev vhost-user,id=vu0net,chardev=vu0,queues=3 \\",
        "-device virtio-net-pci,netdev=vu0net,mq=on,vectors=8",
    ]


def test_memory_is_what_was_asked_for() -> None:
    shown = of_class(CONSOLE, "qemu", "--vmm-version", "11.1", "--memory", "3G")
    assert shown.startswith("-m 3G -object memory-backend-memfd,id=mem,size=3G,share=on ")


def test_libvirt_has_an_element_for_disks(image: str) -> None:
    here = Path.cwd()
    with Server("blk", image, "--socket-path", "d.sock", "--num-queues", "2"):
        result = run("snippet", "d.sock", "--for", "libvirt", "--vmm-version", "12.9")
    assert (
        result.out
        == f"""\
<!-- in <domain> -->
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<!-- in <devices> -->
<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='2'/>
  <source type='unix' path="{here}/d.sock">
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='vda' bus='virtio'/>
</disk>
"""
    )


def test_libvirt_has_an_element_for_cards() -> None:
    shown = of_class(CARD, "libvirt", "--vmm-version", "12.9").partition("<!-- in <devices> -->")[2]
    assert (
        shown
        == f"""
<interface type='vhostuser'>
  <source type='unix' path="{Path.cwd()}/d.sock" mode='client'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <model type='virtio'/>
  <driver queues='3'/>
</interface>
"""
    )


def test_an_old_libvirt_is_told_of() -> None:
    words = ("vhost_user.examples.ramdisk", "size=1M", "--socket-path", "d.sock")
    result = run("snippet", *words, "--for", "libvirt", "--vmm-version", "7.0")
    assert (result.status, result.err) == (
        1,
        "vhost-user: libvirt 7.0 has no vhostuser disks; 7.1 has them\n",
    )


DISK = ("disk.py", "--socket-path")
BY_DOCUMENTS = [
    (
        [*DISK, "d.sock", "--for", "cloud-hypervisor"],
        (
            "--memory size=512M,shared=on \\\n"
            "--disk vhost_user=on,socket=d.sock,num_queues=2,queue_size=256\n"
        ),
    ),
    (
        [*DISK, "a,b.sock", "--for", "cloud-hypervisor"],
        (
            "--memory size=512M,shared=on \\\n"
            "--disk 'vhost_user=on,socket=\"a,b.sock\",num_queues=2,queue_size=256'\n"
        ),
    ),
    ([*DISK, "d.sock", "--for", "crosvm"], "--vhost-user type=block,socket=d.sock\n"),
    (
        [*DISK, "/run/d.sock", "--for", "firecracker"],
        (
            'curl --unix-socket "$FIRECRACKER_API" -X PUT http://localhost/drives/vu0 \\\n'
            "    -H 'Content-Type: application/json' \\\n"
            '    -d \'{"drive_id": "vu0", "socket": "/run/d.sock", "is_root_device": false}\'\n'
        ),
    ),
    (
        ["device.py", "--socket-path", "d.sock", "--for", "cloud-hypervisor"],
        (
            "--memory size=512M,shared=on \\\n"
            "--generic-vhost-user 'socket=d.sock,virtio_id=3,queue_sizes=[64,64]'\n"
        ),
    ),
    (
        ["device.py", "--socket-path", "d.sock", "--for", "crosvm"],
        "--vhost-user type=console,socket=d.sock\n",
    ),
]


@pytest.mark.parametrize(("words", "expected"), BY_DOCUMENTS)
def test_other_programs_get_what_their_documents_say(words: list[str], expected: str) -> None:
    Path("device.py").write_text(CONSOLE)
    Path("disk.py").write_text(RAM)
    result = run("snippet", *words)
    assert (result.status, result.out) == (0, expected)


def test_what_a_program_cannot_have_is_said() -> None:
    Path("device.py").write_text(CONSOLE)
    here = ("snippet", "device.py", "--socket-path", "d.sock", "--for")
    assert run(*here, "firecracker").err == (
        "vhost-user: Firecracker takes disks alone, not a back-end of type console\n"
    )
    assert run(*here, "cloud-hypervisor", "--vmm-version", "51.1").err == (
        "vhost-user: Cloud Hypervisor 51.1 has no device for a back-end of type console; "
        "52.0 has a generic one\n"
    )


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["d.sock"], 2, "the following arguments are required: --for"),
        (["d.sock", "--for", "vmware"], 2, "invalid choice: 'vmware'"),
        (["d.sock", "--for", "qemu"], 5, "cannot connect to d.sock: No such file or directory"),
        (["d.sock", "size=1M", "--for", "qemu"], 2, "d.sock is no FILE.py:Class"),
        (["absent.py", "--for", "qemu"], 2, "--socket-path PATH is needed with a class"),
        (["absent.py", "--for", "qemu", "--socket-path", "d"], 1, "absent.py: no such file"),
        (["d.sock", "--for", "qemu", "--vmm-version", "new"], 2, "'new' is not a version"),
        (
            ["d.sock", "--for", "qemu", "--queues", "0"],
            2,
            "'0' is not a number from 1 to 256",
        ),
        (
            ["d.sock", "--for", "qemu", "--memory", "1K"],
            2,
            "'1K' is not a number from 1048576",
        ),
    ],
)
def test_a_slip_is_one_line(words: list[str], status: int, problem: str) -> None:
    result = run("snippet", *words)
    assert (result.status, result.out) == (status, "")
    assert problem in result.err
    assert result.err.count("\n") == 1


def test_the_type_of_an_unknown_device_has_to_be_said() -> None:
    with Server("run", "vhost_user.examples.rng", "--socket-path", "d.sock"):
        unknown = run("snippet", "d.sock", "--for", "crosvm")
        told = run("snippet", "d.sock", "--for", "crosvm", "--type", "rng")
    assert (unknown.status, unknown.err) == (
        2,
        "vhost-user: d.sock: the protocol does not tell the device's type; say it: --type rng\n",
    )
    assert told.out == "--vhost-user type=rng,socket=d.sock\n"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "./vmm --version ended with status 3"),
        ("echo no number", "./vmm --version tells no version: 'no number'"),
    ],
)
def test_a_program_that_tells_no_version_is_an_error(script: str, problem: str) -> None:
    fake = Path("vmm")
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    words = ("vhost_user.examples.rng", "--socket-path", "d.sock", "--for", "qemu")
    result = run("snippet", *words, "--program", "./vmm")
    assert (result.status, result.err) == (1, f"vhost-user: {problem}\n")
