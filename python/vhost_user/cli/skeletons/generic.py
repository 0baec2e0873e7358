"""A device of any type."""

from .common import files

DEVICE = '''\
"""The device."""

import vhost_user as vu


class {Class}(vu.Device):
    """Answers each request with what the driver wrote, in capitals."""

    device_id = {device_id}

    def __init__(self) -> None:
        super().__init__(num_queues=1)

    def on_queue(self, queue: vu.Queue) -> None:
        for request in queue:
            answer = self.answer(bytes(request.readable))[: len(request.writable)]
            request.writable[: len(answer)] = answer
            request.complete(len(answer))

    def answer(self, said: bytes) -> bytes:
        """What the device says to ``said``."""
        return said.upper()
'''

TEST = '''\
"""The device is asked as a driver would, and seen as a front-end sees it."""

from pathlib import Path

import vhost_user as vu

from {module} import {Class}


class FakeRequest:
    """What the driver wrote, the room that it gives, and what was answered."""

    def __init__(self, said: bytes, room: int) -> None:
        self.readable = memoryview(said)
        self.writable = memoryview(bytearray(room))
        self.answers: list[int] = []

    def complete(self, written: int) -> None:
        self.answers.append(written)


def test_each_request_is_answered_once() -> None:
    queue = [FakeRequest(b"hello", 16), FakeRequest(b"world", 3)]
    {Class}().on_queue(queue)  # type: ignore[arg-type]
    assert [request.answers for request in queue] == [[5], [3]]
    assert bytes(queue[0].writable) == b"HELLO" + bytes(11)
    assert bytes(queue[1].writable) == b"WOR"


def test_a_front_end_finds_the_device(vhost_socket: Path) -> None:
    with vu.Backend({Class}(), socket=vhost_socket), vu.Frontend(vhost_socket) as front_end:
        assert front_end.num_queues == 1
        assert "VERSION_1" in front_end.feature_names(front_end.offered_features)
'''

FILES = files(settings="", type_option=" --type {type}", device=DEVICE, test=TEST)
