"""What must hold after an attack on a ring."""

from peer.front_end import FrontEnd

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
