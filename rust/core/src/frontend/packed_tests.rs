use std::os::fd::AsFd;
use std::thread;

use super::*;

const BASE: GuestAddr = GuestAddr(0x1000);

/// A ring at guest address 0x1000 and the bytes of its memory, seen from outside.
fn ring(size: u16, event_idx: bool, in_order: bool) -> (Arc<GuestMemory>, PackedRing) {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    let layout = PackedLayout::at(BASE, size);
    let ring = PackedRing::new(&memory, layout, event_idx, in_order).unwrap();
    (memory, ring)
}

fn bytes<const N: usize>(memory: &GuestMemory, at: GuestAddr, offset: u64) -> [u8; N] {
    let mut out = [0; N];
    memory.read(GuestAddr(at.0 + offset), &mut out).unwrap();
    out
}

fn flags(memory: &GuestMemory, slot: u64) -> u16 {
    u16::from_le_bytes(bytes(memory, BASE, 16 * slot + 14))
}

/// The device's part: a used descriptor, its flags as they are to stand there.
fn use_chain(memory: &GuestMemory, slot: u64, id: u16, len: u32, flags: u16) {
    let at = BASE.0 + 16 * slot;
    memory.write(GuestAddr(at + 8), &len.to_le_bytes()).unwrap();
    memory.write(GuestAddr(at + 12), &id.to_le_bytes()).unwrap();
    memory.write(GuestAddr(at + 14), &flags.to_le_bytes()).unwrap();
}

fn set_device_event(memory: &GuestMemory, ring: &PackedRing, bytes: [u8; 4]) {
    memory.write(ring.layout().device_event, &bytes).unwrap();
}

fn one() -> [Segment; 1] {
    [Segment::writable(GuestAddr(0x8000), 64)]
}

fn two() -> [Segment; 2] {
    [Segment::readable(GuestAddr(0x1122_3344_5566_7788), 0x10), one()[0]]
}

#[test]
fn descriptors_stand_where_the_standard_puts_them() {
    let (memory, mut ring) = ring(4, false, false);
    ring.push(3, &two());
    ring.publish();
    assert_eq!(
        bytes(&memory, BASE, 0),
        [
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x10, 0, 0, 0, 3, 0, 0x81,
            0, // NEXT
            0, 0x80, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 3, 0, 0x82, 0, // WRITE
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]
    );
}

#[test]
fn a_table_is_one_descriptor_and_its_entries_have_no_next_flag() {
    let (memory, mut ring) = ring(4, false, false);
    let table = memory.window(GuestAddr(0x4000), 96).unwrap();
    ring.push_indirect(2, &two(), &table, 3, 0x4030);
    ring.publish();
    assert_eq!(bytes(&memory, BASE, 0), [0x30, 0x40, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 2, 0, 0x84, 0]);
    assert_eq!(
        bytes(&memory, GuestAddr(0x4030), 0),
        [
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x10, 0, 0, 0, 0, 0, 0, 0, //
            0, 0x80, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 2, 0,
        ]
    );
}

#[test]
fn what_was_pushed_is_available_at_publication_and_all_at_once() {
    let (memory, mut ring) = ring(8, false, false);
    ring.push(0, &two());
    ring.push(1, &one());
    assert_eq!([0, 1, 2].map(|slot| flags(&memory, slot)), [0; 3]);
    ring.publish();
    assert_eq!([0, 1, 2].map(|slot| flags(&memory, slot)), [0x81, 0x82, 0x82]);
    ring.push(2, &one());
    assert_eq!(flags(&memory, 3), 0);
}

#[test]
fn flags_are_inverted_in_every_other_lap_within_a_chain_too() {
    let (memory, mut ring) = ring(3, false, false);
    ring.push(0, &two());
    ring.publish();
    use_chain(&memory, 0, 0, 0, 0x8080);
    assert!(ring.pop().unwrap().is_some());
    ring.push(1, &two());
    ring.publish();
    // The third slot of the first lap, and the first of the second.
    assert_eq!((flags(&memory, 2), flags(&memory, 0)), (0x81, 0x8002));
    use_chain(&memory, 2, 1, 0, 0x8080);
    assert!(ring.pop().unwrap().is_some());
    // The device goes on at slot 1 with its wrap counter at 0.
    ring.push(0, &one());
    ring.publish();
    assert_eq!(flags(&memory, 1), 0x8002);
    assert_eq!(ring.pop().unwrap(), None, "0x8002 is available, not used");
    use_chain(&memory, 1, 0, 7, 0x0002);
    assert_eq!(ring.pop().unwrap(), Some(UsedChain { token: 0, len: Some(7) }));
}

#[test]
fn chains_come_back_in_any_order_and_each_moves_the_ring_by_its_own_length() {
    let (memory, mut ring) = ring(8, false, false);
    ring.push(5, &two());
    ring.push(6, &one());
    ring.push(7, &two());
    ring.publish();
    assert_eq!(ring.pop().unwrap(), None);
    // The last first: at slot 0, and it had two. The next stands at slot 2.
    use_chain(&memory, 0, 7, 64, 0x8082);
    use_chain(&memory, 2, 6, 1, 0x8082);
    use_chain(&memory, 3, 5, 9, 0x8082);
    let tokens: Vec<_> = std::iter::from_fn(|| ring.pop().unwrap()).collect();
    let expected = [(7, 64), (6, 1), (5, 9)];
    assert_eq!(tokens, expected.map(|(token, len)| UsedChain { token, len: Some(len) }));
    assert!(ring.is_idle());
}

#[test]
fn one_used_descriptor_in_order_gives_back_a_batch() {
    let (memory, mut ring) = ring(8, false, true);
    for id in [4, 2, 0, 1] {
        ring.push(id, &two());
    }
    ring.publish();
    // The third of the batch is named in the batch's first slot.
    use_chain(&memory, 0, 0, 64, 0x8082);
    assert_eq!(ring.pop().unwrap(), Some(UsedChain { token: 4, len: None }));
    assert_eq!(ring.pop().unwrap(), Some(UsedChain { token: 2, len: None }));
    assert_eq!(ring.pop().unwrap(), Some(UsedChain { token: 0, len: Some(64) }));
    assert_eq!(ring.pop().unwrap(), None);
    // The next used descriptor comes behind the six slots of the batch.
    use_chain(&memory, 6, 1, 3, 0x8082);
    assert_eq!(ring.pop().unwrap(), Some(UsedChain { token: 1, len: Some(3) }));
    assert!(ring.is_idle());
}

#[test]
fn without_the_write_flag_the_used_length_means_nothing() {
    let (memory, mut ring) = ring(8, false, false);
    ring.push(0, &one());
    ring.publish();
    use_chain(&memory, 0, 0, 0xffff_ffff, 0x8080);
    assert_eq!(ring.pop().unwrap(), Some(UsedChain { token: 0, len: Some(0) }));
}

#[test]
fn the_device_is_kicked_as_its_event_suppression_says() {
    // Flags (the last two bytes) 0: always; 1: never; 2: at slot 2 of the first lap.
    for (event, kicks) in [
        ([0, 0, 0, 0], [true, true, true, true]),
        ([0, 0, 1, 0], [false, false, false, false]),
        ([2, 0x80, 2, 0], [false, false, true, false]),
        ([3, 0x80, 2, 0], [false, false, false, true]),
        ([2, 0, 2, 0], [false, false, false, false]),
    ] {
        let (memory, mut ring) = ring(4, true, false);
        set_device_event(&memory, &ring, event);
        let kicked = [0, 1, 2, 3].map(|id| {
            ring.push(id, &one());
            ring.publish()
        });
        assert_eq!(kicked, kicks, "{event:?}");
        assert_eq!(ring.signals.kicks(), kicks.iter().filter(|&&kick| kick).count() as u64);
    }
}

#[test]
fn without_event_index_a_slot_in_the_event_suppression_means_nothing() {
    let (memory, mut ring) = ring(4, false, false);
    set_device_event(&memory, &ring, [3, 0x80, 2, 0]);
    ring.push(0, &one());
    assert!(ring.publish());
    assert!(!ring.publish(), "nothing new");
}

#[test]
fn an_event_is_passed_over_the_wrap_too() {
    let at = |slot, wrap| Position { slot, wrap };
    for (event, now, moved, expected) in [
        // Of a ring of 5: moved over its end to slot 1, from slot 3.
        (0x8003, at(1, false), 3, true),
        (0x8004, at(1, false), 3, true),
        (0x0000, at(1, false), 3, true),
        (0x0001, at(1, false), 3, false),
        (0x8002, at(1, false), 3, false),
        // The same slots a lap on.
        (0x0003, at(1, false), 3, false),
        (0x8000, at(1, false), 3, false),
        // All of the ring at once.
        (0x8000, at(0, false), 5, true),
        (0x8004, at(0, false), 5, true),
        (0x0000, at(0, false), 5, false),
        (0x0002, at(2, true), 5, true),
        (0x8001, at(2, true), 5, true),
        (0x8002, at(2, true), 5, false),
        (0x0001, at(2, true), 5, false),
    ] {
        assert_eq!(is_passed(event, now, moved, 5), expected, "{event:#x} {now:?} {moved}");
    }
}

#[test]
fn a_driver_that_polls_asks_for_no_calls_and_one_that_waits_for_the_next_slot() {
    let (memory, mut ring) = ring(2, true, false);
    let (alive, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let asked = |memory: &GuestMemory, ring: &PackedRing| -> [u8; 4] {
        bytes(memory, ring.layout().driver_event, 0)
    };
    assert_eq!(asked(&memory, &ring), [0, 0, 0, 0]);
    ring.suppress_calls(true);
    assert_eq!(asked(&memory, &ring), [0, 0, 1, 0]);
    for (slot, used, expected) in
        [(0, 0x8080, [0, 0x80, 2, 0]), (1, 0x8080, [1, 0x80, 2, 0]), (0, 0, [0, 0, 2, 0])]
    {
        ring.push(0, &one());
        ring.publish();
        assert!(!ring.wait(Duration::ZERO, alive.as_fd()).unwrap());
        assert_eq!(asked(&memory, &ring), expected);
        use_chain(&memory, slot, 0, 0, used);
        assert!(ring.pop().unwrap().is_some());
    }
}

#[test]
fn without_event_index_calls_are_asked_for_by_flag() {
    let (memory, mut ring) = ring(2, false, false);
    ring.suppress_calls(true);
    let driver_event = ring.layout().driver_event;
    assert_eq!(bytes(&memory, driver_event, 0), [0, 0, 1, 0]);
    ring.suppress_calls(false);
    assert_eq!(bytes(&memory, driver_event, 0), [0, 0, 0, 0]);
}

#[test]
fn waiting_ends_with_the_call() {
    let (memory, mut ring) = ring(4, true, false);
    let (alive, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    ring.push(0, &one());
    ring.publish();
    let call = ring.signals.call_fd().try_clone_to_owned().unwrap();
    use_chain(&memory, 0, 0, 0, 0x8080);
    let device = thread::spawn(move || crate::sys::eventfd::signal(call.as_fd()));
    assert!(ring.wait(Duration::from_secs(10), alive.as_fd()).unwrap());
    device.join().unwrap();
    assert!(ring.pop().unwrap().is_some());
}

#[test]
fn waiting_ends_when_the_back_end_is_gone() {
    let (_memory, mut ring) = ring(4, true, false);
    let (alive, other) = std::os::unix::net::UnixStream::pair().unwrap();
    ring.push(0, &one());
    ring.publish();
    drop(other);
    let result = ring.wait(Duration::from_secs(10), alive.as_fd());
    assert!(matches!(result, Err(FrontendError::Closed { .. })));
}

#[test]
fn an_answer_to_what_was_not_asked_is_the_back_ends_fault() {
    for (in_order, id, why) in [
        (false, 8, "used id 8 in a ring of 8"),
        (false, 0xffff, "used id 65535 in a ring of 8"),
        (false, 3, "id 3 was used and is not in flight"),
        (false, 2, "id 2 was used and has not been made available"),
        (true, 3, "3 was used and is none of the 2 oldest in flight, in order from 1"),
        (true, 2, "id 2 was used and has not been made available"),
    ] {
        let (memory, mut ring) = ring(8, false, in_order);
        ring.push(1, &one());
        ring.publish();
        ring.push(2, &two());
        use_chain(&memory, 0, id, 0, 0x8080);
        let error = ring.pop().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn nothing_is_used_on_a_ring_with_nothing_in_flight() {
    let (memory, mut ring) = ring(4, false, false);
    use_chain(&memory, 0, 0, 0, 0x8080);
    assert_eq!(ring.pop().unwrap(), None);
}

#[test]
fn the_position_has_a_slot_and_a_wrap_counter_in_either_half() {
    let (memory, mut ring) = ring(2, false, false);
    assert_eq!(ring.base(), 0x8000_8000);
    for (slot, used, base) in
        [(0, 0x8080, 0x8001_8001), (1, 0x8080, 0), (0, 0, 0x0001_0001), (1, 0, 0x8000_8000)]
    {
        ring.push(0, &one());
        ring.publish();
        use_chain(&memory, slot, 0, 0, used);
        assert!(ring.pop().unwrap().is_some());
        assert_eq!(ring.base(), base);
    }
}

#[test]
#[should_panic(expected = "5 slots in a ring of 4")]
fn a_ring_is_not_filled_beyond_its_size() {
    let (_memory, mut ring) = ring(4, false, false);
    ring.push(0, &two());
    ring.push(1, &one());
    ring.push(2, &two());
}

#[test]
#[should_panic(expected = "id 1 is in flight")]
fn an_id_is_in_flight_once() {
    let (_memory, mut ring) = ring(4, false, false);
    ring.push(1, &one());
    ring.push(1, &one());
}

#[test]
fn a_ring_that_does_not_fit_is_refused() {
    let memory = Arc::new(GuestMemory::with_size(0x4000).unwrap());
    let good = PackedLayout::at(GuestAddr(0), 4);
    for layout in [
        PackedLayout::at(GuestAddr(0), 0),
        PackedLayout::at(GuestAddr(0), 0x8001),
        PackedLayout::at(GuestAddr(0x3fc0), 4),
        PackedLayout { descriptors: GuestAddr(8), ..good },
        PackedLayout { driver_event: GuestAddr(0x42), ..good },
        PackedLayout { device_event: GuestAddr(0x82), ..good },
    ] {
        let result = PackedRing::new(&memory, layout, false, false);
        assert!(matches!(result, Err(FrontendError::OutOfRange { .. })), "{layout:?}");
    }
}

#[test]
fn the_parts_of_a_ring_follow_one_another_and_are_aligned() {
    let layout = PackedLayout::at(BASE, 255);
    assert_eq!(layout.driver_event, GuestAddr(0x2000));
    assert_eq!(layout.device_event, GuestAddr(0x2040));
    assert_eq!(layout.end(), GuestAddr(0x2044));
}
