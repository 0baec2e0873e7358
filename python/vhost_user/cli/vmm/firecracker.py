"""Firecracker: its document `docs/api_requests/block-vhost-user.md`."""

import json
import os
import shlex

from ..exits import Failure
from .device import ShownDevice, Snippet
from .program import Machine

PROGRAMS: tuple[str, ...] = ()
"""Its version says nothing of what to write."""


def snippet(device: ShownDevice, machine: Machine) -> Snippet:
    """A request to its API."""
    if not device.is_disk:
        raise Failure(f"Firecracker takes disks alone, not a back-end of type {device.type}")
    socket = os.path.abspath(device.socket)
    drive = {"drive_id": "vu0", "socket": socket, "is_root_device": False}
    lines = [
        'curl --unix-socket "$FIRECRACKER_API" -X PUT http://localhost/drives/vu0 \\',
        "    -H 'Content-Type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(drive))}",
    ]
    notes = [
        "FIRECRACKER_API is the path of its API's socket; the request comes before InstanceStart",
        'in a file for --config-file the same object stands in the list "drives"',
        "drives of this kind are a developer preview there, with one queue and no snapshots",
        "the drive is read-only if the back-end is (--read-only)",
    ]
    return Snippet(lines, notes, [])
