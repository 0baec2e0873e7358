use super::super::super::packed::AVAIL;
use super::super::super::split::{INDIRECT, NEXT, SplitRing, WRITE};
use super::super::Op;
use super::*;

const RING: GuestAddr = GuestAddr(0);

fn layout(size: u16, indirect: bool) -> QueueLayout {
    let (start, end) = (RING, GuestAddr(1 << 20));
    let features = RingFeatures::default();
    QueueLayout { size, indirect, features, start, end, request_bytes: 8192, shift: 0 }
}

fn split(queue: &BlockQueue) -> &SplitRing {
    match queue.ring() {
        Ring::Split(chains) => chains.ring(),
        Ring::Packed(_) => panic!("the ring is packed"),
    }
}

fn queue(size: u16, indirect: bool) -> (Arc<GuestMemory>, BlockQueue) {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    let queue = BlockQueue::new(&memory, &layout(size, indirect)).unwrap();
    (memory, queue)
}

fn read(sector: u64, len: u32) -> BlockRequest {
    BlockRequest { op: Op::Read, sector, len }
}

/// The device's part: uses the chain `head`.
fn use_chain(memory: &GuestMemory, queue: &BlockQueue, head: u32, len: u32) {
    let layout = split(queue).layout();
    let idx = split(queue).used_index();
    let at = layout.used.0 + 4 + 8 * u64::from(idx % layout.size);
    memory.write(GuestAddr(at), &head.to_le_bytes()).unwrap();
    memory.write(GuestAddr(at + 4), &len.to_le_bytes()).unwrap();
    let idx = idx.wrapping_add(1).to_le_bytes();
    memory.write(GuestAddr(layout.used.0 + 2), &idx).unwrap();
}

/// Bytes at a guest address.
fn bytes<const N: usize>(memory: &GuestMemory, at: u64) -> [u8; N] {
    let mut out = [0; N];
    memory.read(GuestAddr(at), &mut out).unwrap();
    out
}

fn submit(queue: &mut BlockQueue, request: BlockRequest) -> u16 {
    let slot = queue.take_slot().unwrap();
    queue.submit(slot, request);
    queue.publish();
    slot
}

#[test]
fn a_read_is_a_header_writable_data_and_a_status() {
    let (memory, mut queue) = queue(8, false);
    assert_eq!(queue.slots(), 2);
    let slot = submit(&mut queue, read(0x0102_0304_0506, 1024));
    let [header, data, status] = [0, 1, 2].map(|i| split(&queue).descriptor(3 * slot + i));
    assert_eq!((header.len, header.flags, header.next), (16, NEXT, 3 * slot + 1));
    assert_eq!((data.len, data.flags, data.next), (1024, NEXT | WRITE, 3 * slot + 2));
    assert_eq!((status.len, status.flags), (1, WRITE));
    assert_eq!(bytes(&memory, header.addr), [0, 0, 0, 0, 0, 0, 0, 0, 6, 5, 4, 3, 2, 1, 0, 0]);
    assert_eq!(bytes(&memory, status.addr), [0xff]);
    assert_eq!(data.addr % PAGE, 0);
}

#[test]
fn a_write_has_readable_data_and_a_flush_has_none() {
    let (memory, mut queue) = queue(8, false);
    let slot = submit(&mut queue, BlockRequest { op: Op::Write, sector: 1, len: 512 });
    assert_eq!(split(&queue).descriptor(3 * slot + 1).flags, NEXT);
    let slot = submit(&mut queue, BlockRequest { op: Op::Flush, sector: 0, len: 0 });
    let header = split(&queue).descriptor(3 * slot);
    assert_eq!(header.next, 3 * slot + 1);
    assert_eq!(split(&queue).descriptor(3 * slot + 1).len, 1);
    assert_eq!(bytes(&memory, header.addr), [4, 0, 0, 0]);
}

#[test]
fn an_indirect_request_takes_one_descriptor_and_a_table_of_three() {
    let (memory, mut queue) = queue(2, true);
    assert_eq!(queue.slots(), 2);
    let slot = submit(&mut queue, read(1, 512));
    let head = split(&queue).descriptor(slot);
    assert_eq!((head.len, head.flags), (48, INDIRECT));
    // The second entry: length, flags, next.
    assert_eq!(bytes(&memory, head.addr + 16 + 8), [0, 2, 0, 0, 3, 0, 2, 0]);
    assert_eq!(bytes(&memory, head.addr + 32 + 8), [1, 0, 0, 0, 2, 0, 0, 0]);
}

#[test]
fn in_a_packed_ring_the_id_is_the_slot() {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    let features = RingFeatures { packed: true, ..RingFeatures::default() };
    let mut queue =
        BlockQueue::new(&memory, &QueueLayout { features, ..layout(7, false) }).unwrap();
    assert_eq!(queue.slots(), 2, "a packed ring has any number of entries");
    let request = read(1, 512);
    let (first, second) = (submit(&mut queue, request), submit(&mut queue, request));
    // Length, id and flags of the second request's header, data and status.
    let rest = [3, 4, 5].map(|slot| bytes::<8>(&memory, RING.0 + 16 * slot + 8));
    let id = second as u8;
    let [next, write] = [(NEXT | AVAIL) as u8, (WRITE | AVAIL) as u8];
    assert_eq!(
        rest,
        [
            [16, 0, 0, 0, id, 0, next, 0],
            [0, 2, 0, 0, id, 0, next | write, 0],
            [1, 0, 0, 0, id, 0, write, 0]
        ]
    );
    // Used descriptors: 513 bytes of the second request, then of the first.
    memory.write(GuestAddr(RING.0 + 8), &[1, 2, 0, 0, id, 0, 0x82, 0x80]).unwrap();
    memory.write(GuestAddr(RING.0 + 48 + 8), &[1, 2, 0, 0, first as u8, 0, 0x82, 0x80]).unwrap();
    for slot in [second, first] {
        let done = queue.completed().unwrap().unwrap();
        assert_eq!((done.slot, done.request, done.used_len), (slot, request, 513));
    }
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn of_a_batch_in_order_the_length_of_the_last_alone_is_told() {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    let features = RingFeatures { in_order: true, ..RingFeatures::default() };
    let mut queue = BlockQueue::new(&memory, &QueueLayout { features, ..layout(8, true) }).unwrap();
    let slots = [submit(&mut queue, read(0, 512)), submit(&mut queue, read(0, 1024))];
    let used = split(&queue).layout().used.0;
    memory.write(GuestAddr(used + 4), &[1, 0, 0, 0, 3, 0, 0, 0]).unwrap();
    memory.write(GuestAddr(used + 2), &[2, 0]).unwrap();
    for (slot, used_len) in [(slots[0], 513), (slots[1], 3)] {
        let done = queue.completed().unwrap().unwrap();
        assert_eq!((done.slot, done.used_len), (slot, used_len));
    }
}

#[test]
fn an_answer_brings_status_and_data_and_frees_the_slot() {
    for indirect in [false, true] {
        let (memory, mut queue) = queue(8, indirect);
        let request = read(3, 512);
        let slot = submit(&mut queue, request);
        assert_eq!((queue.in_flight(), queue.completed().unwrap()), (1, None));
        let head = if indirect { slot } else { 3 * slot };
        memory.write(GuestAddr(queue.cells.0.0 + 64 * u64::from(slot) + 16), &[0]).unwrap();
        memory.write(queue.data.0, &[0xab; 512]).unwrap();
        use_chain(&memory, &queue, head.into(), 513);
        let done = queue.completed().unwrap();
        assert_eq!(done, Some(Completion { slot, request, status: 0, used_len: 513 }));
        let mut data = [0; 512];
        queue.read_data(slot, &mut data);
        assert_eq!(data, [0xab; 512]);
        assert_eq!(queue.in_flight(), 0);
    }
}

#[test]
fn a_status_that_was_not_written_is_not_good() {
    let (memory, mut queue) = queue(8, true);
    let slot = submit(&mut queue, read(3, 512));
    use_chain(&memory, &queue, slot.into(), 0);
    assert_eq!(queue.completed().unwrap().map(|done| done.status), Some(UNANSWERED));
}

#[test]
fn an_answer_longer_than_its_room_is_the_back_ends_fault() {
    for (request, len) in
        [(read(0, 512), 514), (BlockRequest { op: Op::Write, sector: 0, len: 512 }, 2)]
    {
        let (memory, mut queue) = queue(8, true);
        let slot = submit(&mut queue, request);
        use_chain(&memory, &queue, slot.into(), len);
        let error = queue.completed().unwrap_err().to_string();
        assert!(error.contains("bytes written"), "{error}");
    }
}

#[test]
fn slots_do_not_overlap_and_stay_in_their_part_of_memory() {
    let (_memory, queue) = queue(128, true);
    let count = u64::from(queue.slots());
    assert!(split(&queue).layout().end() <= queue.tables.0);
    assert!(queue.tables.0.0 + 48 * count <= queue.cells.0.0);
    assert!(queue.cells.0.0 + 64 * count <= queue.data.0.0);
    assert!(queue.data.0.0 + u64::from(queue.slot_bytes()) * count <= 1 << 20);
    assert_eq!(queue.slot_bytes(), 4096, "8192 were wanted and do not fit 128 times");
}

#[test]
fn a_queue_without_room_is_refused() {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    for layout in [
        layout(2, false),
        layout(256, true),
        QueueLayout { end: GuestAddr(0x1000), ..layout(4, false) },
    ] {
        let error = BlockQueue::new(&memory, &layout).unwrap_err();
        assert!(matches!(error, FrontendError::OutOfRange { .. }), "{error}");
    }
}
