"""The ping device of the examples as a host on a bridge of Open vSwitch with DPDK."""

from __future__ import annotations

from pathlib import Path

import vhost_user as vu
from peer.net import ECHO, IS_AT, REPLY, WHO_HAS
from vhost_user.examples.ping import Ping

from .rig.packages import Packages
from .rig.switch import Switch

HOST = "10.0.0.1"


def test_a_bridge_sends_and_receives_and_lets_the_device_go(
    packages: Packages, socket_path: Path
) -> None:
    backend = vu.Backend(Ping(HOST), socket=socket_path, on_error="raise")
    with backend, Switch(packages, socket_path.parent, socket_path) as switch:
        for packet in (WHO_HAS, b"\xff" * 60, ECHO):
            switch.send(packet)
        switch.wait_received(2)
        assert switch.close() == [IS_AT, REPLY]
