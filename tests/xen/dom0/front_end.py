"""A front-end of a Xen guest, in any of the three designs."""

from __future__ import annotations

import os
from typing import Self

from peer import wire
from peer.front_end import WANTED, FrontEnd
from peer.numbers import Feature, ProtocolFeature, Request
from peer.packed import PackedRing
from peer.ring import Places, Ring, SplitRing

from .design import FOREIGN, SET_XEN_MMAP, Design, Kind, Offer
from .ioctl import PAGE, device
from .layout import Layout, inside_pages
from .memory import DomainMemory


class XenFrontEnd(FrontEnd):
    """Offers a guest's memory by ``layout`` and tells how to map it by ``design``.

    The descriptors are closed as soon as they were sent, unless ``keeps_devices``.
    """

    def __init__(
        self, channel: wire.Channel, memory: DomainMemory, design: Design, layout: Layout
    ) -> None:
        super().__init__(channel, memory)
        self.domain_memory = memory
        self.design = design
        self.layout = layout
        self.packed_rings: dict[int, PackedRing] = {}
        self.keeps_devices = False
        self.kept: list[int] = []

    def negotiate(self, *, also: int = 0, never: int = 0, protocol: int | None = None) -> Self:
        wanted = WANTED | ProtocolFeature.XEN_MMAP if protocol is None else protocol
        super().negotiate(also=also, never=never, protocol=wanted)
        assert self.protocol & ProtocolFeature.XEN_MMAP, "the back-end offers no XEN_MMAP"
        return self

    def add_ring(self, index: int = 0, size: int = 64) -> SplitRing:
        """A split ring with each part on a page of its own, unless regions are to start inside
        one."""
        places = self._places(SplitRing, size)
        self.rings[index] = SplitRing(self.domain_memory, size, places)
        return self.rings[index]

    def add_packed_ring(self, index: int = 0, size: int = 64) -> PackedRing:
        """A packed ring, whose parts lie as those of a split one."""
        places = self._places(PackedRing, size)
        self.packed_rings[index] = PackedRing(self.domain_memory, size, places)
        return self.packed_rings[index]

    def _places(self, form: type[Ring], size: int) -> Places:
        """Where a ring lies. Where pages are granted one by one, those of a part that the device
        does not write are granted for reading alone."""
        memory = self.domain_memory
        align = 16 if self.layout.make is inside_pages else PAGE
        sizes = form.part_bytes(size)
        places = Places(*(memory.allocate(part, align) for part in sizes))
        if self.layout.by_grant:
            for place, part, written in zip(places, sizes, form.DEVICE_WRITES, strict=True):
                memory.grant(place, part, read_only=self.layout.on_demand and not written)
        return places

    def start(self, queues: int = 1, size: int = 64, **features: int) -> Self:
        """Everything up to running rings, of the format that was negotiated; the regions depend on
        where the rings lie."""
        self.negotiate(**features)
        packed = self.features & Feature.RING_PACKED
        for index in range(queues):
            (self.add_packed_ring if packed else self.add_ring)(index, size)
        self.share_memory()
        for index in range(queues):
            self.run_ring(index)
        return self

    def share_memory(self) -> Self:
        """By the memory table; or region by region where the message design has several kinds."""
        memory = self.domain_memory
        memory.offers = self.layout.make(memory, self.all_rings(), self.layout.flags)
        kinds = {offer.kind for offer in memory.offers}
        if self.design is Design.MESSAGE and len(kinds) > 1:
            told = None
            for offer in memory.offers:
                if offer.kind != told:
                    self.tell(offer.kind)
                told = offer.kind
                self.add_region(offer)
            return self
        if self.design is Design.MESSAGE:
            self.tell(*kinds)
        self.offer_table(memory.offers)
        return self

    def ring(self, index: int = 0) -> Ring:
        """A ring of either format that was laid out."""
        return self.packed_rings[index] if index in self.packed_rings else self.rings[index]

    def all_rings(self) -> list[Ring]:
        """The rings, of whichever format."""
        return [*self.rings.values(), *self.packed_rings.values()]

    def tell(self, kind: Kind) -> None:
        """SET_XEN_MMAP, which has no answer."""
        self.channel.command(SET_XEN_MMAP, kind.message())

    def offer_table(self, offers: list[Offer]) -> None:
        """SET_MEM_TABLE."""
        table = wire.memory_table([offer.describe(self.design) for offer in offers])
        self._with_devices(Request.SET_MEM_TABLE, table, offers)

    def add_region(self, offer: Offer) -> None:
        """ADD_MEM_REG."""
        payload = wire.single_region(offer.describe(self.design))
        self._with_devices(Request.ADD_MEM_REG, payload, [offer])

    def remove_region(self, offer: Offer) -> None:
        """REM_MEM_REG."""
        payload = wire.single_region(offer.describe(self.design))
        self.change(Request.REM_MEM_REG, payload)

    def refuses_table(self, *offers: Offer, name: str | None = None) -> bool:
        """Whether SET_MEM_TABLE is refused; ``name`` is a device file other than the right one."""
        fds = [device(name or device_of(offer.kind)) for offer in offers]
        try:
            return self.refuses_table_with(fds, *offers)
        finally:
            for fd in fds:
                os.close(fd)

    def refuses_table_with(self, fds: list[int], *offers: Offer) -> bool:
        """Whether SET_MEM_TABLE is refused with these devices, which stay open."""
        table = wire.memory_table([offer.describe(self.design) for offer in offers])
        return self.is_refused(Request.SET_MEM_TABLE, table, fds)

    def _with_devices(self, request: Request, payload: bytes, offers: list[Offer]) -> None:
        fds = [device(device_of(offer.kind)) for offer in offers]
        try:
            self.change(request, payload, fds)
        finally:
            self.kept += fds
            if not self.keeps_devices:
                self.close_devices()

    def close_devices(self) -> None:
        """Close the descriptors that were sent."""
        while self.kept:
            os.close(self.kept.pop())

    def close(self) -> None:
        for ring in self.packed_rings.values():
            ring.close()
        self.packed_rings.clear()
        super().close()
        self.close_devices()


def device_of(kind: Kind) -> str:
    """The device file for the kind of mapping."""
    return "privcmd" if kind.flags & FOREIGN else "gntdev"
