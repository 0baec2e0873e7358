"""The page on libvirt is followed with a real libvirt, whose guest boots from our disk."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from docs.document import Reader, blocks
from docs.stand_in import stand_in

from .command import BlkCommand, ServeCommand
from .rig.boot_image import DATA_START, SECTOR_BYTES, BootImage
from .rig.libvirt import World
from .rig.packages import NEWEST, Packages

PROJECT = Path(__file__).parents[2]
PAGE = "docs/libvirt.md"
TEXT = (PROJECT / PAGE).read_text()
RUN_WITH = (NEWEST,)

OPERATIONS = (PROJECT / "docs/operations.md").read_text()
VIRSH, *MIGRATE = re.findall(r"^\$ (virsh migrate .*) guest qemu", OPERATIONS, re.MULTILINE)[
    0
].split()
"""The command as the page on operations has it."""

MIB = 1 << 20
DATA_AT = DATA_START * SECTOR_BYTES
BOOT_SECONDS = 180

SCRIPT = """\
sum=$(dd if=/dev/vda2 bs=1M skip=1 count=1 iflag=direct 2>/dev/null | sha256sum | cut -c 1-64)
echo "$sum $(ls /sys/block/vda/mq | wc -l) queues" >/tmp/result
dd if=/tmp/result of=/dev/vda2 bs=1M seek=2 conv=fsync
"""
"""Read the second MiB of the partition, and write what it is to the third."""


COUNTING = """\
mkfifo /tmp/never
exec 9<>/tmp/never
boot=$(cut -c 1-8 /proc/sys/kernel/random/boot_id)
n=0
while :; do
    n=$((n+1))
    echo "$boot $n" >/tmp/count
    dd if=/tmp/count of=/dev/vda2 bs=1M seek=2 conv=fsync 2>/dev/null
    dd if=/dev/vda2 bs=1M skip=2 count=1 iflag=direct 2>/dev/null | head -n 1 | cmp - /tmp/count
    read -t 0.05 never <&9 || true
done
"""
"""Write to the third MiB of the partition which boot this is, and how often that was written."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the page's reader."""
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def world(
    packages: Packages, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    try:
        world = World(packages, tmp_path_factory.mktemp("world"), here)
    except PermissionError as error:
        pytest.skip(f"root is needed, with the right to mount: {error}")
    with world:
        world.start_daemon()
        yield world


def test_the_page_on_libvirt_does_what_it_says(
    packages: Packages, world: World, here: Path, tmp_path: Path
) -> None:
    image = BootImage(packages, here / "disk.img", SCRIPT).path
    programs = stand_in(tmp_path, "virsh", world.within("/usr/bin/virsh")).parent
    with Reader(here, programs=[programs], within=world.entering) as reader:
        for block in blocks(TEXT):
            reader.follow(block)
            if "$ virsh start" in block.text:
                wait_for_result(image, world)
        reader.end_servers()


def test_a_guest_goes_to_another_host_of_libvirt_and_back(
    packages: Packages, world: World, here: Path, tmp_path: Path
) -> None:
    here.chmod(0o777)  # QEMU's user makes a socket there
    image = BootImage(packages, here / "moving.img", COUNTING).path
    xml = documented_xml().replace("<name>guest</name>", "<name>moving</name>")
    (here / "moving.xml").write_text(xml)
    with World(packages, tmp_path, here, "other") as other, ExitStack() as stack:
        other.start_daemon()
        for host, options in ((world, []), (other, ["--incoming"])):
            socket = host.path("/run/vhost-user/disk.sock")
            socket.parent.mkdir(exist_ok=True)
            allowed = ["--num-queues", "2", "--mode", "0660", "--group", "libvirt-qemu"]
            back_end = BlkCommand(image, socket, *allowed, *options, within=host.entering)
            stack.callback(back_end.kill)
            back_end.start()
        world.run("/usr/bin/virsh", "create", "moving.xml")
        counted = wait_for_count(image, world, more_than=0)
        for source, destination in ((world, other), (other, world)):
            where = ["--migrateuri", "unix:///mnt/migration.sock"]
            source.run(f"/usr/bin/{VIRSH}", *MIGRATE, "moving", destination.uri, *where)
            again = wait_for_count(image, destination, more_than=counted[1] + 5)
            assert again[0] == counted[0], "it has booted again"
            counted = again
        world.run("/usr/bin/virsh", "destroy", "moving")


def wait_for_count(image: Path, world: World, *, more_than: int) -> tuple[str, int]:
    """Waits until the guest has written a higher number; the boot that wrote it, and the number."""
    end = time.monotonic() + BOOT_SECONDS
    while True:
        with image.open("rb") as file:
            file.seek(DATA_AT + 2 * MIB)
            found = re.match(rb"([0-9a-f-]{8}) (\d+)\n", file.read(64))
        if found and int(found[2]) > more_than:
            return found[1].decode(), int(found[2])
        assert time.monotonic() < end, f"the guest does not write\n{world.report()}"
        time.sleep(0.05)


def wait_for_result(image: Path, world: World) -> None:
    """Waits until the guest has written what it has read: 64 hexadecimal digits, and queues."""
    with image.open("rb") as file:
        file.seek(DATA_AT + MIB)
        digest = hashlib.sha256(file.read(MIB)).hexdigest()
    expected = f"{digest} 2 queues\n".encode()
    end = time.monotonic() + BOOT_SECONDS
    found = b""
    while found != expected:
        assert time.monotonic() < end, f"the guest wrote {found!r}\n{world.report()}"
        time.sleep(0.05)
        with image.open("rb") as file:
            file.seek(DATA_AT + 2 * MIB)
            found = file.read(len(expected))


def documented_xml() -> str:
    return next(block.text for block in blocks(TEXT) if block.note == "file: guest.xml")


QEMU_OPTIONS = "http://libvirt.org/schemas/domain/qemu/1.0"
"""The name space that libvirt has for them."""


def snippet(world: World, *words: str) -> str:
    """The page's domain with what `vhost-user snippet` prints in place of the page's own, put where
    it says."""
    command = [*world.entering, str(Path(sys.executable).with_name("vhost-user"))]
    done = subprocess.run(
        [*command, "snippet", *words, "--for", "libvirt"],
        capture_output=True,
        text=True,
        timeout=BOOT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = {"domain": "", "devices": ""}
    pattern = r"<!-- in <(\w+)>.*? -->\n(.*?)(?=<!--|\Z)"
    for where, text in re.findall(pattern, done.stdout, re.DOTALL):
        parts[where] += text
    own = r"<memoryBacking>.*</memoryBacking>|<disk .*</disk>"
    xml = re.sub(own, "", documented_xml(), flags=re.DOTALL)
    xml = xml.replace("<name>guest</name>", f"<name>shown</name>{parts['domain']}")
    xml = xml.replace("<devices>", f"<devices>{parts['devices']}")
    return xml.replace("<domain ", f"<domain xmlns:qemu='{QEMU_OPTIONS}' ")


def test_the_elements_of_a_snippet_give_a_guest_its_disk(
    packages: Packages, world: World, here: Path
) -> None:
    image = BootImage(packages, here / "shown.img", SCRIPT).path
    socket = world.path("/run/vhost-user/shown.sock")
    socket.parent.mkdir(exist_ok=True)
    allowed = ["--num-queues", "2", "--mode", "0660", "--group", "libvirt-qemu"]
    back_end = BlkCommand(image, socket, *allowed, within=world.entering)
    try:
        back_end.start()
        (here / "shown.xml").write_text(snippet(world, "/run/vhost-user/shown.sock"))
        world.run("/usr/bin/virsh", "create", "shown.xml")
        try:
            wait_for_result(image, world)
        finally:
            world.run("/usr/bin/virsh", "destroy", "shown")
        back_end.stop()
    finally:
        back_end.kill()


def test_the_elements_of_a_snippet_give_a_guest_a_device_that_libvirt_does_not_know(
    world: World, here: Path
) -> None:
    socket = world.path("/run/vhost-user/rng.sock")
    socket.parent.mkdir(exist_ok=True)
    words = ["run", "vhost_user.examples.rng", "--mode", "0660", "--group", "libvirt-qemu"]
    back_end = ServeCommand(*words, socket=socket, within=world.entering)
    try:
        back_end.start()
        xml = snippet(world, "/run/vhost-user/rng.sock", "--type", "rng")
        (here / "rng.xml").write_text(xml)
        world.run("/usr/bin/virsh", "create", "rng.xml")
        devices = world.run(
            "/usr/bin/virsh", "qemu-monitor-command", "shown", "--hmp", "info qtree"
        )
        assert 'dev: vhost-user-rng-pci, id ""' in devices
        world.run("/usr/bin/virsh", "destroy", "shown")
        back_end.stop()
    finally:
        back_end.kill()


REFUSED = re.findall(r"^\| `(<.*?>)` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize("element", REFUSED)
def test_libvirt_refuses_the_elements_that_the_page_names(
    world: World, here: Path, element: str
) -> None:
    assert len(REFUSED) == 7
    xml = documented_xml().replace("</disk>", f"{element}</disk>")
    (here / "refused.xml").write_text(xml)
    with pytest.raises(AssertionError, match="is not supported with vhostuser disk"):
        world.run("/usr/bin/virsh", "define", "refused.xml")


def test_libvirt_wants_shared_memory(world: World, here: Path) -> None:
    xml = re.sub(r"<memoryBacking>.*</memoryBacking>", "", documented_xml(), flags=re.DOTALL)
    (here / "private.xml").write_text(xml)
    with pytest.raises(AssertionError, match="'vhostuser' requires shared memory"):
        world.run("/usr/bin/virsh", "define", "private.xml")


@pytest.mark.parametrize(
    ("options", "left_out", "error"),
    [
        (["--num-queues", "2"], "", "Permission denied"),
        (
            ["--num-queues", "1", "--mode", "0660", "--group", "libvirt-qemu"],
            " queues='2'",
            "The maximum number of queues supported by the backend is 1",
        ),
    ],
    ids=["mode", "queues"],
)
def test_a_guest_does_not_start_where_the_page_says_so(
    world: World, here: Path, options: list[str], left_out: str, error: str
) -> None:
    here.chmod(0o755)  # the mode of the socket is what keeps QEMU's user away
    image = here / "other.img"
    image.write_bytes(bytes(MIB))
    xml = documented_xml().replace(left_out, "").replace("/run/vhost-user/disk.sock", "/mnt/o.sock")
    (here / "other.xml").write_text(re.sub(r"<reconnect .*/>", "", xml))
    back_end = BlkCommand(image, here / "o.sock", *options, within=world.entering)
    try:
        back_end.start()
        with pytest.raises(AssertionError, match=error):
            world.run("/usr/bin/virsh", "create", "other.xml")
        back_end.stop()
    finally:
        back_end.kill()
