//! Where a ring stands: when it is taken up, when chains are put back, and when they are walked
//! once more.

use std::sync::atomic::Ordering;

use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::{RingError, SplitRing};

use crate::driver::{DATA, Driver, Form, NEXT, Piece, TABLES, WRITE, guest, pop, readable};

/// A ring of `size` entries whose driver stands at `available`, and the used index at `used`.
fn standing(size: u16, available: u16, used: u16) -> Driver {
    let driver = Driver::new(&guest(), size, false, available);
    driver.guest.store_u16(driver.used + 2, used, Ordering::Relaxed);
    driver
}

fn into(at: u64) -> [Piece; 1] {
    [Piece { at, len: 8, writable: true }]
}

#[test]
fn a_ring_goes_on_from_its_used_index_if_that_fits_the_drivers() {
    // (available, used, named by the front-end, taken up at)
    let cases = [
        (300, 300, 0, 300),
        (300, 300, 300, 300),
        // Cloud Hypervisor names the driver's index.
        (5, 0, 5, 0),
        // Across the wrap, and as far behind as the ring is long.
        (3, 0xfffd, 0, 0xfffd),
        (64, 0, 17, 0),
        (0x8010, 0x7fd0, 1, 0x7fd0),
        // One more than that cannot be: what the front-end named stands.
        (65, 0, 17, 17),
        (0, 1, 9, 9),
        (299, 300, 299, 299),
    ];
    for (available, used, named, begun) in cases {
        let driver = standing(64, available, used);
        let mut device = SplitRing::find(&driver.guest.device, driver.layout(true), named).unwrap();
        assert_eq!(device.next_available(), named, "nothing was looked at");
        assert_eq!(device.begin(), Ok(begun), "{available} {used} {named}");
        assert_eq!(device.next_available(), begun);
    }
}

#[test]
fn a_ring_that_was_taken_up_elsewhere_publishes_there() {
    let mut driver = standing(64, 0xffff, 0xffff);
    let mut device = driver.start_device(0);
    for n in 0..3 {
        driver.add(&into(DATA + 8 * n), Form::Direct);
    }
    driver.expose();
    while let Some((head, _)) = pop(&mut device).unwrap() {
        device.push(head, 8);
    }
    device.publish();
    assert_eq!((driver.used_index(), device.next_available()), (2, 2));
}

#[test]
fn the_ring_steps_back_over_the_chains_popped_last_until_one_is_not_in_flight() {
    for start in [0, 0xfffe] {
        let mut driver = Driver::new(&guest(), 8, false, start);
        let mut device = driver.start_device(start);
        let heads: Vec<u16> =
            (0..5).map(|n| driver.add(&into(DATA + 8 * n), Form::Direct)).collect();
        driver.expose();
        assert_eq!(device.last_popped(), None);
        for &head in &heads {
            assert_eq!(pop(&mut device).unwrap().unwrap().0, head);
            assert_eq!(device.last_popped(), Some(head));
        }
        device.push(heads[2], 0);
        for &head in heads[3..].iter().rev() {
            assert_eq!(device.last_popped(), Some(head));
            device.unpop(head);
        }
        assert_eq!(device.last_popped(), None, "the one before is not in flight");
        assert_eq!(device.next_available(), start.wrapping_add(3));
        assert_eq!(device.heads_in_flight().len(), 2);
        assert_eq!(device.in_flight(), 2);
        // What it stepped back over comes again, in the same order.
        for &head in &heads[3..] {
            assert_eq!(pop(&mut device).unwrap().unwrap().0, head);
        }
    }
}

#[test]
fn a_head_that_came_again_is_stepped_back_over_once() {
    for size in [1, 2] {
        let mut driver = Driver::new(&guest(), size, false, 0);
        let mut device = driver.start_device(0);
        for turn in 1..=5 {
            driver.put(0, DATA, 8, WRITE, 0);
            driver.submit(0);
            assert_eq!(pop(&mut device).unwrap().unwrap().0, 0);
            if turn < 5 {
                device.push(0, 0);
                device.publish();
            }
        }
        assert_eq!(device.last_popped(), Some(0));
        device.unpop(0);
        assert_eq!((device.last_popped(), device.next_available()), (None, 4));
        assert!(device.heads_in_flight().is_empty());
    }
}

#[test]
fn a_chain_in_flight_is_walked_again_as_it_stands_then() {
    let mut driver = Driver::new(&guest(), 16, false, 0);
    let mut device = driver.start_device(0);
    driver.guest.write(DATA, b"before");
    let pieces = [
        Piece { at: DATA, len: 6, writable: false },
        Piece { at: DATA + 64, len: 1, writable: true },
    ];
    let direct = driver.add(&pieces, Form::Direct);
    let table = driver.add(&pieces, Form::Indirect(0, TABLES));
    driver.expose();
    pop(&mut device).unwrap().unwrap();
    pop(&mut device).unwrap().unwrap();
    driver.guest.write(DATA, b"behind");
    for head in [direct, table] {
        let mut buffers = Buffers::default();
        device.walk_again(head, &mut buffers).unwrap();
        assert_eq!(readable(&buffers), b"behind");
        assert_eq!(buffers.writable().len(), 1);
    }
    // The driver may have changed it to anything: it is checked like the first time.
    driver.put(direct, DATA, 6, NEXT, direct);
    let again = device.walk_again(direct, &mut Buffers::default());
    assert!(matches!(again, Err(RingError::TooLong { .. })), "{again:?}");
    driver.put(direct, 1 << 60, 6, 0, 0);
    let mut buffers = Buffers::default();
    device.walk_again(direct, &mut buffers).unwrap();
    assert!(buffers.fault().is_some());
    // Nothing of this moves the ring.
    assert_eq!((device.in_flight(), device.next_available()), (2, 2));
}
