"""A front-end fills no disk with what a server says on standard error."""

from peer import wire
from peer.front_end import FrontEnd
from peer.numbers import Request

from .command import Server

TIMES = 300


def test_front_ends_that_come_and_go_are_a_hundred_lines_on_standard_error(image: str) -> None:
    with Server("blk", image, "--socket-path", "d.sock", "-vv") as server:
        for _ in range(TIMES):
            with FrontEnd.connect("d.sock") as front:
                front.negotiate()
                assert front.is_refused(Request.SET_VRING_NUM, wire.state(77, 1))
        result = server.end()
    assert result.status == 0
    lines = result.err.splitlines()
    for said in ("front-end connected", "front-end disconnected", "refused: SET_VRING_NUM"):
        assert 100 <= sum(said in line for line in lines) <= 130
