"""DPDK's driver with rings of each form, on the echo device: every byte that is sent comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from vhost_user.examples.echo import MRG_RXBUF

from .conftest import Drive
from .packets import numbered
from .rig.testpmd import DEVICE, RING
from .test_echo import LONG, ORDINARY, cycle, served

RING_PACKED, IN_ORDER = 1 << 34, 1 << 35


@pytest.mark.parametrize("pairs", [1, 4])
@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("packed", [0, 1])
def test_every_packet_comes_back_by_rings_of_each_form(
    packed: int, in_order: int, pairs: int, drive: Drive, socket_path: Path
) -> None:
    """Packets of one piece and of several, into one receive buffer and into several."""
    count = 8 * RING // pairs  # the rings go round several times
    lengths = cycle((*ORDINARY, *LONG), count)
    packets = [numbered(lengths, pair=pair) for pair in range(pairs)]
    with served(socket_path, pairs) as device:
        driver = drive(packets, f"packed_vq={packed}", f"in_order={in_order}", "mrg_rxbuf=1")
        driver.command("start")
        driver.wait_back(driver.sent)
        assert device.negotiated_features & MRG_RXBUF
        assert bool(device.negotiated_features & RING_PACKED) == bool(packed)
        assert bool(device.negotiated_features & IN_ORDER) == bool(in_order)
        assert driver.quit() == packets


def test_a_packed_ring_of_an_odd_size_goes_round(drive: Drive, socket_path: Path) -> None:
    packets = [numbered(cycle(ORDINARY, 4 * RING))]
    with served(socket_path) as device:
        driver = drive(packets, "packed_vq=1", "queue_size=255")
        assert "Number of RXDs: 255" in driver.command(f"show rxq info {DEVICE} 0")
        driver.command("start")
        driver.wait_back(driver.sent)
        assert device.negotiated_features & RING_PACKED
        assert driver.quit() == packets
