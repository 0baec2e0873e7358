//! What a driver may not do. Each is an error that names the rule, and nothing is taken.

use proptest::prelude::*;
use vhost_user_core::ring::{PackedLayout, PackedRing, RingError};
use vhost_user_core::ring_position::PackedIndex;

use super::driver::*;
use crate::driver::readable;

const SIZE: u16 = 8;

/// Expects this error of what the driver has added, behind one good chain, now and ever after.
fn refuses(driver: &mut Driver, device: &mut PackedRing, error: RingError) {
    driver.expose();
    let (token, _) = pop(device).unwrap().expect("the chain in front is good");
    assert_eq!(token.id, 7);
    for _ in 0..2 {
        assert_eq!(pop(device).map(|popped| popped.map(|(token, _)| token)), Err(error));
    }
    assert_eq!(device.tokens_in_flight(), [token]);
    device.push(token, 0);
    device.publish();
    assert_eq!(driver.collect(), [(7, 0)], "and it comes back");
}

fn ring() -> (Driver, PackedRing) {
    let mut driver = Driver::new(&guest(), SIZE, false, 0);
    let device = driver.start_device();
    driver.add_raw(7, &[(DATA, 1, 0)]);
    (driver, device)
}

fn refuses_chain(id: u16, descriptors: &[(u64, u32, u16)], error: RingError) {
    let (mut driver, mut device) = ring();
    driver.add_raw(id, descriptors);
    refuses(&mut driver, &mut device, error);
}

#[test]
fn a_chain_without_end_is_refused() {
    let room = SIZE - 1;
    let error = RingError::Endless { slot: 1, room };
    refuses_chain(0, &[(DATA, 1, NEXT); SIZE as usize - 1], error);
    // The same of a ring that is nothing else.
    let mut driver = Driver::new(&guest(), SIZE, false, 0);
    let mut device = driver.start_device();
    driver.add_raw(0, &[(DATA, 1, NEXT); SIZE as usize]);
    driver.expose();
    let endless = RingError::Endless { slot: 0, room: SIZE };
    assert_eq!(pop(&mut device).unwrap_err(), endless);
    assert_eq!(device.next_available(), PackedIndex::INITIAL, "nothing was taken");
}

#[test]
fn a_chain_over_descriptors_in_flight_is_refused() {
    let mut driver = Driver::new(&guest(), SIZE, false, 0);
    let mut device = driver.start_device();
    driver.add_raw(3, &[(DATA, 1, NEXT), (DATA, 1, NEXT), (DATA, 1, 0)]);
    driver.expose();
    let (first, _) = pop(&mut device).unwrap().unwrap();
    // Five descriptors are left in the ring, and this is six.
    driver.add_raw(4, &[(DATA, 1, NEXT); 6]);
    driver.expose();
    assert_eq!(pop(&mut device).unwrap_err(), RingError::Endless { slot: 3, room: 5 });
    assert_eq!(device.tokens_in_flight(), [first]);
}

#[test]
fn a_buffer_id_that_the_ring_has_not_is_refused() {
    for id in [SIZE, 0x7fff, 0xffff] {
        refuses_chain(id, &[(DATA, 1, 0)], RingError::BadId { id, size: SIZE });
    }
}

#[test]
fn a_buffer_id_that_is_in_flight_is_refused_until_it_is_back() {
    let (mut driver, mut device) = ring();
    driver.add_raw(7, &[(DATA, 1, 0)]);
    driver.expose();
    let (token, _) = pop(&mut device).unwrap().unwrap();
    assert_eq!(pop(&mut device).unwrap_err(), RingError::IdInFlight(7));
    device.push(token, 0);
    device.publish();
    assert_eq!(pop(&mut device).unwrap().unwrap().0.id, 7);
}

#[test]
fn indirect_tables_of_no_too_many_or_half_entries_are_refused() {
    for len in [0, 8, 15, 17, 16 * 1025, 0xffff_fff0, 0xffff_ffff] {
        let error = RingError::BadTable { head: 1, len };
        refuses_chain(1, &[(TABLES, len, INDIRECT)], error);
    }
}

#[test]
fn a_table_may_be_longer_than_the_ring() {
    let (mut driver, mut device) = ring();
    driver.add(&[Piece { at: DATA, len: 1, writable: false }; 1024], Form::Indirect(TABLES));
    driver.expose();
    pop(&mut device).unwrap().unwrap();
    assert_eq!(pop(&mut device).unwrap().unwrap().1.readable().len(), 1024);
}

#[test]
fn a_table_in_a_table_and_one_in_a_chain_of_several_are_refused() {
    let (mut driver, mut device) = ring();
    driver.guest.write(TABLES + 8, &[16, 0, 0, 0, 0, 0, INDIRECT as u8, 0]);
    driver.add_raw(1, &[(TABLES, 16, INDIRECT)]);
    refuses(&mut driver, &mut device, RingError::BadIndirect { head: 1 });
    let several = [(DATA, 1, NEXT), (TABLES, 16, INDIRECT)];
    refuses_chain(1, &several, RingError::BadIndirect { head: 1 });
    let linked = [(TABLES, 16, INDIRECT | NEXT), (DATA, 1, 0)];
    refuses_chain(1, &linked, RingError::BadIndirect { head: 1 });
}

#[test]
fn a_table_that_was_not_negotiated_is_refused() {
    let mut driver = Driver::new(&guest(), SIZE, false, 0);
    let layout = PackedLayout { indirect: false, ..driver.layout() };
    let mut device = PackedRing::find(&driver.guest.device, layout, PackedIndex::INITIAL).unwrap();
    driver.add_raw(1, &[(TABLES, 16, INDIRECT)]);
    driver.expose();
    assert_eq!(pop(&mut device).unwrap_err(), RingError::BadIndirect { head: 1 });
}

#[test]
fn a_readable_descriptor_behind_a_writable_one_is_refused() {
    let error = RingError::ReadableAfterWritable { head: 2 };
    refuses_chain(2, &[(DATA, 1, WRITE | NEXT), (DATA, 1, 0)], error);
}

#[test]
fn four_gigabytes_in_one_chain_are_refused() {
    let half = 0x8000_0000;
    refuses_chain(2, &[(DATA, half, NEXT), (DATA, half, 0)], RingError::TooLarge { head: 2 });
}

#[test]
fn a_buffer_outside_of_memory_fails_its_request_alone() {
    let (mut driver, mut device) = ring();
    driver.add_raw(1, &[(0xffff_ffff_ffff_fff0, 0x20, 0)]);
    driver.add_raw(2, &[(DATA, 3, 0)]);
    driver.expose();
    assert!(pop(&mut device).unwrap().unwrap().1.fault().is_none());
    assert!(pop(&mut device).unwrap().unwrap().1.fault().is_some());
    assert_eq!(pop(&mut device).unwrap().unwrap().1.readable().len(), 3);
}

#[test]
fn descriptors_of_no_length_have_no_byte() {
    let (mut driver, mut device) = ring();
    driver.guest.write(DATA, b"abc");
    driver.add_raw(1, &[(DATA, 0, NEXT), (DATA, 3, NEXT), (0, 0, 0)]);
    driver.expose();
    pop(&mut device).unwrap();
    assert_eq!(readable(&pop(&mut device).unwrap().unwrap().1), b"abc");
}

/// An event area that asks for nonsense only costs signals.
#[test]
fn an_event_area_of_nonsense_gets_a_notification() {
    for (flags, event) in [(3, 0), (0xfff3, 7), (DESC, 0x7fff), (DESC, 0xffff)] {
        let mut driver = Driver::new(&guest(), SIZE, true, 0);
        let mut device = driver.start_device();
        driver.wish(flags, event);
        for _ in 0..2 {
            driver.add(&[Piece { at: DATA, len: 1, writable: false }], Form::Direct);
            driver.expose();
            let (token, _) = pop(&mut device).unwrap().unwrap();
            device.push(token, 0);
            assert!(device.publish(), "{flags:#x} {event:#x}");
            driver.collect();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever lies in the ring: the device comes to an end, and takes only what is available.
    #[test]
    fn a_ring_of_random_descriptors_ends(
        words in prop::collection::vec((any::<u8>(), 0..5000_u32, 0..12_u16, any::<u16>()), 1..40),
        event_idx in any::<bool>(),
    ) {
        let size = words.len() as u16;
        let driver = Driver::new(&guest(), size, event_idx, 0);
        for (at, (page, len, id, flags)) in (RING..).step_by(16).zip(&words) {
            driver.guest.write(at, &(DATA + (u64::from(*page) << 12)).to_le_bytes());
            driver.guest.write(at + 8, &len.to_le_bytes());
            driver.guest.write(at + 12, &id.to_le_bytes());
            driver.guest.write(at + 14, &flags.to_le_bytes());
        }
        let first = words[0].3;
        let mut device = driver.start_device();
        let (mut chains, mut taken) = (0, 0);
        while let Ok(Some((token, _))) = pop(&mut device) {
            chains += 1;
            taken += token.descriptors;
            prop_assert!(taken <= size);
        }
        prop_assert!(chains == 0 || first & AVAIL != 0 && first & USED == 0);
        // What is in flight may be given back all the same.
        for token in device.tokens_in_flight() {
            device.push(token, 0);
        }
        device.publish();
        prop_assert_eq!(device.tokens_in_flight(), []);
    }
}
