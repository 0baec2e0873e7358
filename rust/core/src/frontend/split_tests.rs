use std::os::fd::AsFd;
use std::thread;

use super::*;

/// A ring of `size` at guest address 0x1000 and the bytes of its memory, seen from outside.
fn ring(size: u16, event_idx: bool) -> (Arc<GuestMemory>, SplitRing) {
    let memory = Arc::new(GuestMemory::with_size(1 << 20).unwrap());
    let layout = RingLayout::at(GuestAddr(0x1000), size);
    let ring = SplitRing::new(&memory, layout, event_idx).unwrap();
    (memory, ring)
}

fn bytes<const N: usize>(memory: &GuestMemory, at: GuestAddr, offset: u64) -> [u8; N] {
    let mut out = [0; N];
    memory.read(GuestAddr(at.0 + offset), &mut out).unwrap();
    out
}

/// The device's part: uses one chain.
fn use_chain(memory: &GuestMemory, ring: &SplitRing, idx: u16, head: u32, len: u32) {
    let layout = ring.layout();
    let at = layout.used.0 + 4 + 8 * u64::from(idx % layout.size);
    memory.write(GuestAddr(at), &head.to_le_bytes()).unwrap();
    memory.write(GuestAddr(at + 4), &len.to_le_bytes()).unwrap();
    let idx = idx.wrapping_add(1).to_le_bytes();
    memory.write(GuestAddr(layout.used.0 + 2), &idx).unwrap();
}

fn set_avail_event(memory: &GuestMemory, ring: &SplitRing, event: u16) {
    let layout = ring.layout();
    let at = GuestAddr(layout.used.0 + 4 + 8 * u64::from(layout.size));
    memory.write(at, &event.to_le_bytes()).unwrap();
}

#[test]
fn descriptors_and_available_entries_stand_where_the_standard_puts_them() {
    let (memory, mut ring) = ring(4, false);
    let layout = *ring.layout();
    let addr = 0x1122_3344_5566_7788;
    let descriptor = Descriptor { addr, len: 0x99aa_bbcc, flags: NEXT | WRITE, next: 0x0102 };
    ring.set_descriptor(2, descriptor);
    assert_eq!(ring.descriptor(2), descriptor);
    assert_eq!(
        bytes(&memory, layout.descriptors, 32),
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc, 0xbb, 0xaa, 0x99, 3, 0, 2, 1]
    );
    ring.push(2);
    assert_eq!(bytes(&memory, layout.available, 0), [0, 0, 0, 0, 2, 0]);
    ring.publish();
    assert_eq!(bytes(&memory, layout.available, 0), [0, 0, 1, 0, 2, 0]);
}

#[test]
fn the_parts_of_a_ring_follow_one_another_and_are_aligned() {
    let layout = RingLayout::at(GuestAddr(0x1000), 256);
    assert_eq!(layout.available, GuestAddr(0x2000));
    assert_eq!(layout.used, GuestAddr(0x2240));
    assert_eq!(layout.end(), GuestAddr(0x2240 + 6 + 8 * 256));
}

#[test]
fn without_event_index_the_device_is_kicked_unless_it_said_no() {
    let (memory, mut ring) = ring(4, false);
    ring.push(0);
    assert!(ring.publish());
    memory.write(ring.layout().used, &[1, 0]).unwrap();
    ring.push(1);
    assert!(!ring.publish());
    assert!(!ring.publish(), "nothing new");
    assert_eq!(ring.kicks(), 1);
}

#[test]
fn with_event_index_the_device_is_kicked_when_its_event_is_passed() {
    let (memory, mut ring) = ring(8, true);
    ring.push(0);
    assert!(ring.publish(), "avail_event 0 is passed by 0 -> 1");
    set_avail_event(&memory, &ring, 2);
    ring.push(1);
    assert!(!ring.publish(), "1 -> 2 does not pass 2");
    ring.push(2);
    ring.push(3);
    assert!(ring.publish(), "2 -> 4 passes 2");
    ring.push(4);
    assert!(!ring.publish(), "4 -> 5 does not pass 2 again");
}

#[test]
fn event_arithmetic_holds_over_the_wrap() {
    for (event, new, old, expected) in [
        (0xffff, 0, 0xffff, true),
        (0, 1, 0xffff, true),
        (1, 1, 0xffff, false),
        (5, 5, 5, false),
        (4, 5, 4, true),
        (5, 4, 5, true),
    ] {
        assert_eq!(need_event(event, new, old), expected, "{event} {new} {old}");
    }
}

#[test]
fn used_chains_come_in_order_and_over_the_wrap_of_the_index() {
    let (memory, mut ring) = ring(2, false);
    for i in 0..70_000_u32 {
        let head = (i % 2) as u16;
        ring.push(head);
        ring.publish();
        assert_eq!(ring.pop().unwrap(), None);
        use_chain(&memory, &ring, i as u16, head.into(), i);
        assert_eq!(ring.pop().unwrap(), Some(Used { head, len: i }));
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn a_used_head_outside_the_ring_is_the_back_ends_fault() {
    let (memory, mut ring) = ring(4, false);
    ring.push(0);
    ring.publish();
    use_chain(&memory, &ring, 0, 4, 0);
    let error = ring.pop().unwrap_err().to_string();
    assert!(error.contains("used head 4 in a ring of 4"), "{error}");
}

#[test]
fn more_used_than_available_is_the_back_ends_fault() {
    let (memory, mut ring) = ring(4, false);
    ring.push(0);
    ring.publish();
    for idx in [2_u16, 0x8000, 0xffff] {
        memory.write(GuestAddr(ring.layout().used.0 + 2), &idx.to_le_bytes()).unwrap();
        assert!(matches!(ring.pop(), Err(FrontendError::Ring { .. })), "{idx}");
    }
}

#[test]
fn waiting_ends_with_the_call_and_asks_for_it_before() {
    let (memory, mut ring) = ring(4, true);
    let (alive, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    ring.suppress_calls(true);
    ring.push(0);
    ring.publish();
    assert!(!ring.wait(Duration::ZERO, alive.as_fd()).unwrap());
    let used_event: [u8; 2] = bytes(&memory, ring.layout().available, 4 + 2 * 4);
    assert_eq!(used_event, [0, 0]);

    let call = ring.call_fd().try_clone_to_owned().unwrap();
    use_chain(&memory, &ring, 0, 0, 0);
    let device = thread::spawn(move || crate::sys::eventfd::signal(call.as_fd()));
    assert!(ring.wait(Duration::from_secs(10), alive.as_fd()).unwrap());
    device.join().unwrap();
    assert!(ring.pop().unwrap().is_some());
}

#[test]
fn a_driver_that_polls_asks_for_no_calls_and_renews_that() {
    let (memory, mut ring) = ring(4, true);
    ring.suppress_calls(true);
    let used_event = |memory: &GuestMemory, ring: &SplitRing| {
        u16::from_le_bytes(bytes(memory, ring.layout().available, 4 + 2 * 4))
    };
    for i in 0..0x2_0000_u32 {
        ring.push(0);
        ring.publish();
        let (old, new) = (i as u16, (i as u16).wrapping_add(1));
        assert!(!need_event(used_event(&memory, &ring), new, old), "{i}");
        use_chain(&memory, &ring, old, 0, 0);
        assert!(ring.pop().unwrap().is_some());
        assert!(ring.pop().unwrap().is_none());
    }
}

#[test]
fn waiting_ends_when_the_back_end_is_gone_or_reports_the_ring() {
    let (_memory, mut ring) = ring(4, false);
    let (alive, other) = std::os::unix::net::UnixStream::pair().unwrap();
    ring.push(0);
    ring.publish();
    crate::sys::eventfd::signal(ring.error_fd());
    assert!(ring.error_signalled());
    let result = ring.wait(Duration::from_secs(10), alive.as_fd());
    assert!(matches!(result, Err(FrontendError::Ring { .. })));
    ring.signals.clear_error();
    assert!(!ring.error_signalled());
    drop(other);
    let result = ring.wait(Duration::from_secs(10), alive.as_fd());
    assert!(matches!(result, Err(FrontendError::Closed { .. })));
}

#[test]
fn a_ring_that_does_not_fit_is_refused() {
    let memory = Arc::new(GuestMemory::with_size(0x4000).unwrap());
    for layout in [
        RingLayout::at(GuestAddr(0), 0),
        RingLayout::at(GuestAddr(0), 3),
        RingLayout::at(GuestAddr(0x3fc0), 64),
        RingLayout { size: 4, ..RingLayout::at(GuestAddr(8), 4) },
    ] {
        let result = SplitRing::new(&memory, layout, false);
        assert!(matches!(result, Err(FrontendError::OutOfRange { .. })), "{layout:?}");
    }
}
