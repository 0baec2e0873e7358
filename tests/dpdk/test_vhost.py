"""The package's own driver on a back-end that shares no code with it: DPDK's, in Open vSwitch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rig.packages import Packages
from .rig.switch import Mirror

PEERS = Path(__file__).parents[1] / "peers/std"
BUILD_LIMIT = 600.0
LIMIT = 120.0
COUNT = 3000


@pytest.fixture(scope="module")
def driver() -> str:
    """The program that drives a network device, built if it is not."""
    where = ["--locked", "--manifest-path", str(PEERS / "Cargo.toml"), "--bin", "peers-packets"]
    subprocess.run(["cargo", "build", "--quiet", *where], check=True, timeout=BUILD_LIMIT)
    target = os.environ.get("CARGO_TARGET_DIR", PEERS / "target")
    return str(Path(target, "debug/peers-packets"))


@pytest.fixture(scope="module")
def mirror(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a front-end has to listen for the switch."""
    folder = tmp_path_factory.mktemp("ovs")
    with Mirror(packages, folder, folder / "vhost.sock"):
        yield folder / "vhost.sock"


@pytest.mark.parametrize(
    "rings", [[], ["in-order"], ["packed"], ["packed", "in-order"]], ids="-".join
)
def test_every_packet_comes_back_by_rings_of_each_form(
    driver: str, mirror: Path, rings: list[str]
) -> None:
    mirror.unlink(missing_ok=True)
    done = subprocess.run(
        [driver, str(mirror), str(COUNT), *rings],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", f"{COUNT} packets came back\n")
