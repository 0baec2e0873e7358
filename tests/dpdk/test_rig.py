"""The rig has the driver that the tests are written for, and says what goes wrong with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .rig import pcap
from .rig.packages import MEMORY, Packages
from .rig.testpmd import Driver, DriverError


def test_the_driver_is_that_of_dpdk_25_11(packages: Packages) -> None:
    """What it does is not promised: another version may need other tests."""
    assert packages.dpdk_version.startswith("25.11.")
    # It has no port to test, and ends with an error after it has told its version.
    command = [*packages.testpmd(), *MEMORY, "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "RTE Version: 'DPDK 25.11." in shown.stderr, shown


def test_a_driver_that_finds_no_device_is_reported(
    packages: Packages, socket_path: Path, tmp_path: Path
) -> None:
    driver = Driver(packages, tmp_path, socket_path, [[bytes(60)]])
    try:
        with pytest.raises(DriverError, match=r"(?s)without the device.*backend\.sock"):
            driver.wait_ready()
    finally:
        driver.close()


def test_packets_are_kept_in_files(tmp_path: Path) -> None:
    packets = [bytes([length % 256]) * length for length in (0, 1, 60, 1514, 9728)]
    pcap.write(tmp_path / "x.pcap", packets)
    assert pcap.read(tmp_path / "x.pcap") == packets
    assert (tmp_path / "x.pcap").stat().st_size == 24 + 5 * 16 + 60 + 1 + 1514 + 9728
