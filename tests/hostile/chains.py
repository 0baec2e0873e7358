"""Chains that a test lays by hand."""

from peer.blk import Request, Type
from peer.front_end import FrontEnd


def write_request(front: FrontEnd) -> Request:
    """A good write of ones, so that a chain that is served all the same shows on the disk."""
    return front.blk().prepare(Type.OUT, 0, b"\x11" * 512)


def lay(front: FrontEnd, *descriptors: tuple[int, int, int, int]) -> None:
    """Writes descriptors 0, 1, 2 ..., makes 0 available and kicks."""
    ring = front.rings[0]
    for index, descriptor in enumerate(descriptors):
        ring.set_descriptor(index, *descriptor)
    ring.offer(0)
    ring.kick()
