"""A recorded conversation of a real front-end, played again to another back-end.

Order, flags, sizes and descriptors are the recording's. Replaced is what followed from the
recorded back-end and driver: accepted features are cut to what this back-end offers, a ring that
goes on goes on where it was left, and guest memory is fresh, with rings where the guest had them.
Each time a ring is enabled, requests run through it.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

from hostile.server import Server
from peer import wire
from peer.blk import BlkDriver, Status
from peer.memory import GuestMemory, Region
from peer.numbers import Flag, Request
from peer.ring import Places, SplitRing

REQUESTS = 3
"""Reads through a ring each time it is enabled."""
EQUAL_ANSWERS = {Request.GET_QUEUE_NUM, Request.GET_MAX_MEM_SLOTS}
"""Questions that both back-ends must answer alike; acknowledgements are compared too."""

EVENTS = {Request.SET_VRING_KICK: "kick_fd", Request.SET_VRING_CALL: "call_fd"}


class Replay:
    """One front-end, its guest's memory and rings, and what the back-end should know."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.channel = server.channel()
        self.memory: GuestMemory | None = None
        self.rings: dict[int, SplitRing] = {}
        self.sizes: dict[int, int] = {}
        self.next: dict[int, int] = {}
        self.running: set[int] = set()
        self.events: dict[tuple[Request, int], int] = {}
        self.offered = (1 << 64) - 1
        self.answered = 0
        self.requests = 0

    def play(self, recording: Path) -> None:
        """Says all that the front-end said on its channel, and checks every answer."""
        messages = json.loads(recording.read_text(encoding="utf-8"))["messages"]
        phase = messages[0]["phase"]
        for message in messages:
            if message["phase"] != phase and message["phase"] == "back-end lost and found":
                self.reconnect()
            phase = message["phase"]
            if message["channel"] == "main":
                self.say(message)

    def reconnect(self) -> None:
        """The front-end dials again; its guest has not noticed."""
        self.channel.close()
        self.channel = self.server.channel()
        self.running.clear()

    def say(self, message: dict[str, Any]) -> None:
        """One message, and its answer if the recording has one."""
        request = Request(message["request"])
        payload = self.before(request, bytes.fromhex(message["payload"]))
        fds = self.descriptors(request, payload, message["fds"])
        self.channel.send(wire.frame(request, payload, message["flags"]), fds or None)
        if message["reply"]:
            self.check(request, payload, message)
        self.after(request, payload)

    def before(self, request: Request, payload: bytes) -> bytes:
        """The recorded payload, with what was the other back-end's replaced."""
        if request in (Request.SET_FEATURES, Request.SET_PROTOCOL_FEATURES):
            return wire.u64(int.from_bytes(payload, "little") & self.offered)
        if request == Request.SET_VRING_BASE:
            index, base = wire.STATE.unpack(payload)
            self.next[index] = self.next[index] if base else 0
            return wire.state(index, self.next[index])
        if request == Request.SET_VRING_NUM:
            index, self.sizes[index] = wire.STATE.unpack(payload)
        if request == Request.SET_VRING_ADDR:
            self.place(payload)
        return payload

    def descriptors(self, request: Request, payload: bytes, kinds: list[str]) -> list[int]:
        """A descriptor of each recorded kind."""
        if kinds and request in (Request.SET_MEM_TABLE, Request.ADD_MEM_REG):
            return [region.fd for region in self.regions(payload[8:])]
        if kinds == ["eventfd"]:
            return [self.event(request, payload[0])]
        if kinds == ["socket"]:
            ours, theirs = socket.socketpair()
            self.server.track(ours)
            self.server.track(theirs)
            return [theirs.fileno()]
        assert not kinds, f"{request.name} came with {kinds}"
        return []

    def regions(self, described: bytes) -> list[Region]:
        """The regions of a message; those that are new are made."""
        found = []
        for guest, size, user, offset in wire.REGION.iter_unpack(described):
            known = self.memory.regions if self.memory else []
            same = [r for r in known if (r.guest, r.size, r.user) == (guest, size, user)]
            region = same[0] if same else Region(guest, size, user=user, offset=offset)
            if self.memory is None:
                self.memory = self.server.track(GuestMemory(region))
            elif not same:
                self.memory.regions.append(region)
            found.append(region)
        return found

    def event(self, request: Request, index: int) -> int:
        """A fresh eventfd for a ring's event, which the ring's driver uses from now on."""
        fd = self.events[request, index] = self.server.eventfd()
        if index in self.rings:
            self.connect_events(index)
        return fd

    def connect_events(self, index: int) -> None:
        """A ring's driver kicks, and listens for calls, where the back-end does."""
        ring = self.rings[index]
        for request, name in EVENTS.items():
            if (request, index) in self.events:
                os.dup2(self.events[request, index], getattr(ring, name), inheritable=False)

    def place(self, payload: bytes) -> None:
        """A ring where the guest has it: empty if it starts at 0, else as it was left."""
        assert self.memory is not None
        index, _, descriptors, used, available, _ = wire.VRING_ADDR.unpack(payload)
        places = Places(*map(self.guest_address, (descriptors, available, used)))
        former = self.rings.get(index)
        if former and former.places == places and self.next[index]:
            return
        if former:
            former.close()
        self.rings[index] = self.server.track(SplitRing(self.memory, self.sizes[index], places))
        self.rings[index].reset()
        self.connect_events(index)

    def guest_address(self, user: int) -> int:
        """Where in the guest a front-end's address lies."""
        assert self.memory is not None
        for region in self.memory.regions:
            if region.user <= user < region.user + region.size:
                return user - region.user + region.guest
        raise AssertionError(f"the recording has no region at {user:#x}")

    def check(self, request: Request, payload: bytes, message: dict[str, Any]) -> None:
        """The answer, against the recorded one."""
        recorded = bytes.fromhex(message["reply"]["payload"])
        answer = self.channel.answer_to(request)
        assert len(answer) == len(recorded), request.name
        if request == Request.GET_VRING_BASE:
            index = wire.STATE.unpack(payload)[0]
            assert answer == wire.state(index, self.next.get(index, 0))
        elif request in EQUAL_ANSWERS or message["flags"] & Flag.NEED_REPLY:
            assert answer == recorded, request.name
        elif request in (Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES):
            self.offered = int.from_bytes(answer, "little")
        self.answered += 1

    def after(self, request: Request, payload: bytes) -> None:
        """What follows from a message: requests through a ring that runs now, or none any more."""
        if request == Request.SET_VRING_KICK:
            self.running.add(payload[0])
        elif request == Request.GET_VRING_BASE:
            self.running.discard(payload[0])
        elif request == Request.REM_MEM_REG and self.memory:
            (gone,) = self.regions(payload[8:])
            self.memory.regions.remove(gone)
            gone.close()
        elif request == Request.SET_VRING_ENABLE and payload[4] and payload[0] in self.running:
            self.read(payload[0])

    def read(self, index: int) -> None:
        """Reads through a ring, with a call for each."""
        assert self.memory is not None
        ring = self.rings[index]
        disk = BlkDriver(self.memory, ring)
        for sector in range(REQUESTS):
            ring.used_event = ring.seen
            assert disk.read(sector, 512).status == Status.OK
        self.requests += REQUESTS
        self.next[index] = (self.next[index] + REQUESTS) & 0xFFFF
