"""A machine stops without waiting for the reads of a disk that defers (GET_VRING_BASE_INFLIGHT):
they are done from their beginning by the disk at its destination, which has the same record."""

import threading
from pathlib import Path

import vhost_user as vu
from peer.blk import Request, Status, Type
from peer.front_end import WANTED, FrontEnd
from peer.mortal import new_record
from peer.numbers import ProtocolFeature
from peer.numbers import Request as Message

from .disks import Keeping

SECONDS = 10.0
FEATURES = int(WANTED | ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.GET_VRING_BASE_INFLIGHT)


def test_deferred_reads_go_along_in_the_record_and_a_write_is_waited_for(
    vhost_socket: Path, tmp_path: Path
) -> None:
    source, destination = Keeping(), Keeping()
    with (
        vu.Backend(source, socket=vhost_socket, drain=3600),
        FrontEnd.connect(str(vhost_socket)) as front,
    ):
        front.negotiate(protocol=FEATURES).share_memory()
        assert front.protocol & ProtocolFeature.GET_VRING_BASE_INFLIGHT
        record = new_record(front)
        front.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
        ring, blk = front.start_ring(), front.blk()
        requests: list[Request] = [
            blk.prepare(Type.IN, 0, room=512),
            blk.prepare(Type.OUT, 8, b"w" * 512),
            blk.prepare(Type.IN, 8, room=512),
        ]
        for request in requests:
            blk.submit(request)
        ring.kick()
        first, write, second = source.take(), source.take(), source.take()
        front.enable(on=0)

        def answer() -> None:
            source.mem[write.offset : write.offset + 512] = b"w" * 512
            write.complete()

        answering = threading.Thread(target=answer)
        answering.start()
        assert front.stop_ring() == 3, "those that were taken count"
        answering.join()
        assert blk.result(requests[1]).status == Status.OK
        ring.take(1)
        before = [blk.result(requests[n]).data for n in (0, 2)]
        for late in (first, second):
            try:
                late.copy_from(b"!" * 512)
                late.complete()
            except vu.StaleRequestError:
                pass
        assert [blk.result(requests[n]).data for n in (0, 2)] == before
        assert ring.used_index == 1
        front.channel.close()

        destination.mem[:] = source.mem
        with vu.Backend(destination, socket=tmp_path / "there"):
            there = FrontEnd.connect(str(tmp_path / "there"), front.memory)
            there.negotiate(protocol=FEATURES).share_memory()
            there.rings = front.rings
            there.change(Message.SET_INFLIGHT_FD, record[0], [record[1]])
            there.start_ring(base=3)
            for number in (0, 2):
                again = destination.take()
                assert again.resubmitted
                again.copy_from(destination.mem[again.offset : again.offset + 512])
                again.complete()
                ring.wait()
                assert blk.result(requests[number]).status == Status.OK
            assert blk.result(requests[2]).data == b"w" * 512
            there.channel.close()
