"""What must hold after an attack on a ring."""

from peer.blk import CANARY, Request, Status
from peer.front_end import FrontEnd
from peer.ring import Used

from .server import Server


def assert_broken(server: Server, front: FrontEnd, *, used: int = 0) -> None:
    """Queue 0 is broken and did nothing; the disk is as it was; queue 1 runs; a new set-up heals.

    `used` is the used index from before the attack.
    """
    ring = front.rings[0]
    assert ring.is_broken(), "the error descriptor was not signalled"
    assert ring.used_index == used, f"used index {ring.used_index}, was {used}"
    assert not any(server.content()), "the disk was written to"
    assert front.blk(1).read(0, 512).status == 0
    ring.kick()
    assert front.blk(1).read(0, 512).status == 0
    assert ring.used_index == used, "a broken ring was used"
    front.stop_ring(0)
    ring.close()
    del front.rings[0]
    front.start_ring(0)
    assert front.blk(0).read(0, 512).status == 0


def assert_fails_alone(
    server: Server, front: FrontEnd, request: Request, *, answered: bool = True
) -> None:
    """The request in queue 0 fails, the disk is as it was, and the queue goes on.

    Not `answered`: nothing of the request can be written, its status neither.
    """
    ring = front.rings[0]
    assert ring.wait() == [Used(0, 1 if answered else 0)]
    status = front.memory.read(request.status, 1)[0]
    assert status == (Status.IOERR if answered else CANARY)
    assert not any(server.content()), "the disk was written to"
    assert not ring.is_broken(0)
    for _ in range(3):
        assert front.blk().read(0, 512).status == Status.OK
