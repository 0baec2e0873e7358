//! What a driver may not do. Each is an error that names the rule, and nothing is taken: a
//! malformed chain is never handled as a shorter one.

use vhost_user_core::address::GuestAddr;
use vhost_user_core::memory::{Access, Buffers, Fault, Unreachable};
use vhost_user_core::ring::{RingError, SplitRing, StartError};

use crate::driver::{
    DATA, Descriptor, Driver, END, INDIRECT, NEXT, TABLES, WRITE, chain_of, guest, pop,
};
use crate::driver::{Piece, RING};
use crate::guest::{Guest, user};

const SIZE: u16 = 256;
const TABLE: Descriptor = Descriptor { at: TABLES, len: 0, flags: INDIRECT, next: 0 };

fn ring(size: u16) -> (Driver, SplitRing) {
    let driver = Driver::new(&guest(), size, false, 0);
    let device = driver.start_device(0);
    (driver, device)
}

/// Makes the chain at descriptor 0 available and expects this error, now and ever after.
fn refuses(driver: &mut Driver, device: &mut SplitRing, error: RingError) {
    driver.submit(0);
    for _ in 0..2 {
        assert_eq!(pop(device).map(|popped| popped.map(|(head, _)| head)), Err(error));
    }
    assert_eq!((device.next_available(), device.in_flight()), (0, 0));
}

fn refuses_chain(descriptors: &[Descriptor], error: RingError) {
    let (mut driver, mut device) = ring(SIZE);
    driver.put_table(driver.descriptors, descriptors);
    refuses(&mut driver, &mut device, error);
}

/// A chain that is only an indirect table, of `len` bytes, with these entries in front.
fn refuses_table(len: u32, entries: &[Descriptor], error: RingError) {
    let (mut driver, mut device) = ring(SIZE);
    driver.put_table(driver.descriptors, &[Descriptor { len, ..TABLE }]);
    driver.put_table(TABLES, entries);
    refuses(&mut driver, &mut device, error);
}

fn pieces(count: usize) -> Vec<Piece> {
    vec![Piece { at: DATA, len: 1, writable: false }; count]
}

fn readable(at: u64, len: u32) -> Descriptor {
    Descriptor { at, len, flags: 0, next: 0 }
}

/// Makes the chain at descriptor 0 available and expects that its request fails alone, for bytes
/// that no region has: the next chain is as good as ever.
fn fails_alone(driver: &mut Driver, device: &mut SplitRing, at: u64, len: u32, writable: bool) {
    let access = if writable { Access::DeviceWritable } else { Access::DeviceReadable };
    let (at, len, reason) = (GuestAddr(at), u64::from(len), Unreachable::Outside);
    driver.submit(0);
    let (head, buffers) = pop(device).unwrap().unwrap();
    assert_eq!((head, buffers.fault()), (0, Some(Fault { at, len, access, reason })));
    device.push(0, 0);
    let last = driver.size - 1;
    driver.put(last, RING, 3, 0, 0);
    driver.submit(last);
    let (head, buffers) = pop(device).unwrap().unwrap();
    assert_eq!((head, buffers.fault(), buffers.readable().len()), (last, None, 3));
}

fn chain_fails_alone(descriptors: &[Descriptor], at: u64, len: u32, writable: bool) {
    let (mut driver, mut device) = ring(SIZE);
    driver.put_table(driver.descriptors, descriptors);
    fails_alone(&mut driver, &mut device, at, len, writable);
}

/// Of a chain that is only an indirect table.
fn table_fails_alone(entries: &[Descriptor], at: u64, len: u32) {
    let (mut driver, mut device) = ring(SIZE);
    let bytes = 16 * entries.len() as u32;
    driver.put_table(driver.descriptors, &[Descriptor { len: bytes, ..TABLE }]);
    driver.put_table(TABLES, entries);
    fails_alone(&mut driver, &mut device, at, len, false);
}

#[test]
fn an_available_index_further_ahead_than_the_ring_is_long_is_refused() {
    for ahead in [SIZE + 1, 0x8000, 0xffff] {
        for start in [0, 1, 0xffff] {
            let mut driver = Driver::new(&guest(), SIZE, false, start);
            let mut device = driver.start_device(start);
            (0..ahead).for_each(|_| driver.offer(0));
            driver.expose();
            let error = RingError::IndexJump {
                available: start.wrapping_add(ahead),
                next: start,
                size: SIZE,
            };
            assert_eq!(device.available(), Err(error));
            assert_eq!(device.enable_kicks(0), Err(error));
            assert_eq!(device.pop(&mut Buffers::default()), Ok(None), "nothing was counted");
        }
    }
}

#[test]
fn an_entry_that_names_no_descriptor_is_refused() {
    for head in [SIZE, 0x1000, 0xffff] {
        let (mut driver, mut device) = ring(SIZE);
        driver.submit(head);
        assert_eq!(pop(&mut device).unwrap_err(), RingError::BadHead { head, size: SIZE });
    }
}

#[test]
fn a_head_that_is_in_flight_is_refused_until_it_is_back() {
    let (mut driver, mut device) = ring(SIZE);
    driver.put(5, DATA, 1, 0, 0);
    driver.offer(5);
    driver.submit(5);
    assert_eq!(pop(&mut device).unwrap().unwrap().0, 5);
    assert_eq!(pop(&mut device).unwrap_err(), RingError::HeadInFlight(5));
    device.push(5, 0);
    assert_eq!(pop(&mut device).unwrap().unwrap().0, 5);
}

#[test]
fn a_loop_ends_at_the_limit_of_a_chain() {
    let long = |n: u16| Descriptor { flags: NEXT, next: (n + 1) % SIZE, ..readable(DATA, 1) };
    let loops: [Vec<Descriptor>; 3] = [
        vec![Descriptor { flags: NEXT, next: 0, ..readable(DATA, 1) }],
        [1, 0].map(|next| Descriptor { flags: NEXT, next, ..readable(DATA, 0) }).into(),
        (0..SIZE).map(long).collect(),
    ];
    for descriptors in loops {
        refuses_chain(&descriptors, RingError::TooLong { head: 0, limit: 1024 });
    }
}

#[test]
fn a_loop_in_an_indirect_table_ends_at_the_limit_of_a_chain() {
    let entries = [1, 0].map(|next| Descriptor { flags: NEXT, next, ..readable(DATA, 1) });
    refuses_table(32, &entries, RingError::TooLong { head: 0, limit: 1024 });
}

#[test]
fn a_next_field_that_names_no_descriptor_is_refused() {
    for next in [SIZE, 0x1000, 0xffff] {
        let first = Descriptor { flags: NEXT, next: 1, ..readable(DATA, 16) };
        let second = Descriptor { flags: NEXT | WRITE, next, ..readable(DATA, 16) };
        let error = RingError::BadNext { head: 0, next, table: SIZE.into() };
        refuses_chain(&[first, second], error);
    }
}

#[test]
fn a_next_field_that_leaves_its_indirect_table_is_refused() {
    for next in [2, SIZE - 1, 0xffff] {
        let first = Descriptor { flags: NEXT, next: 1, ..readable(DATA, 16) };
        let second = Descriptor { flags: NEXT, next, ..readable(DATA, 16) };
        refuses_table(32, &[first, second], RingError::BadNext { head: 0, next, table: 2 });
    }
}

#[test]
fn an_indirect_table_longer_than_any_driver_makes_it_is_refused() {
    for count in [1025, 0x8000, 65_535, 65_536] {
        refuses_table(16 * count, &[], RingError::BadTable { head: 0, len: 16 * count });
    }
}

#[test]
fn a_long_ring_takes_tables_of_its_own_length_and_no_longer_ones() {
    for (count, fits) in [(2048, true), (2049, false)] {
        let (mut driver, mut device) = ring(2048);
        driver.put_table(TABLES, &chain_of(&pieces(count)));
        let len = 16 * count as u32;
        driver.put(0, TABLES, len, INDIRECT, 0);
        driver.submit(0);
        match pop(&mut device) {
            Ok(popped) => assert!(fits && popped.unwrap().1.readable().len() == count as u64),
            Err(error) => assert!(!fits && error == RingError::BadTable { head: 0, len }),
        }
    }
}

#[test]
fn direct_and_indirect_descriptors_count_together() {
    let (mut driver, mut device) = ring(SIZE);
    let mut table = chain_of(&pieces(3));
    table[2] = Descriptor { len: 16 * 1023, ..TABLE };
    driver.put_table(driver.descriptors, &table);
    driver.put_table(TABLES, &chain_of(&pieces(1023)));
    refuses(&mut driver, &mut device, RingError::TooLong { head: 0, limit: 1024 });
}

#[test]
fn an_indirect_table_of_no_whole_number_of_entries_is_refused() {
    for len in [0, 1, 8, 15, 17, 31, 0xffff_fff0, 0xffff_ffff] {
        refuses_table(len, &[readable(DATA, 1)], RingError::BadTable { head: 0, len });
    }
}

#[test]
fn a_table_in_a_table_is_refused() {
    let nested = Descriptor { at: TABLES + 0x100, len: 16, ..TABLE };
    refuses_table(16, &[nested], RingError::BadIndirect { head: 0 });
    let first = Descriptor { flags: NEXT, next: 1, ..readable(DATA, 16) };
    refuses_table(32, &[first, nested], RingError::BadIndirect { head: 0 });
}

#[test]
fn an_indirect_descriptor_with_a_next_one_is_refused() {
    let table = Descriptor { len: 16, flags: INDIRECT | NEXT, next: 1, ..TABLE };
    refuses_chain(&[table, readable(DATA, 1)], RingError::BadIndirect { head: 0 });
}

#[test]
fn an_indirect_descriptor_that_was_not_negotiated_is_refused() {
    let mut driver = Driver::new(&guest(), SIZE, false, 0);
    driver.put(0, TABLES, 16, INDIRECT, 0);
    driver.put_table(TABLES, &[readable(DATA, 1)]);
    let mut device = SplitRing::start(&driver.guest.device, driver.layout(false), 0).unwrap();
    refuses(&mut driver, &mut device, RingError::BadIndirect { head: 0 });
}

#[test]
fn a_request_whose_table_lies_outside_memory_fails_alone() {
    for at in [END - 15, END, u64::MAX - 7] {
        let table = Descriptor { at, len: 16, flags: INDIRECT, next: 0 };
        chain_fails_alone(&[table], at, 16, false);
        let before = Descriptor { flags: NEXT, next: 1, ..readable(DATA, 8) };
        chain_fails_alone(&[before, table], at, 16, false);
    }
}

#[test]
fn a_request_with_a_buffer_outside_memory_fails_alone() {
    let cases = [
        (0xffff_ffff_ffff_fff0, 0x20),
        (u64::MAX, 1),
        (0, 1),
        (RING - 1, 2),
        (END, 1),
        (END - 16, 17),
        (END - 1, u32::MAX),
    ];
    for (at, len) in cases {
        for flags in [0, WRITE] {
            let descriptor = Descriptor { flags, ..readable(at, len) };
            chain_fails_alone(&[descriptor], at, len, flags == WRITE);
        }
        table_fails_alone(&[readable(at, len)], at, len);
    }
}

/// What can be written of such a request is what lies behind the bytes that are nowhere: the status
/// of a block request is the last byte of all.
#[test]
fn behind_a_buffer_outside_memory_the_last_byte_can_be_written() {
    let (mut driver, mut device) = ring(SIZE);
    let link = |at, len, flags, next| Descriptor { at, len, flags: flags | NEXT, next };
    driver.put_table(
        driver.descriptors,
        &[
            link(DATA, 16, 0, 1),
            link(DATA + 0x100, 8, WRITE, 2),
            link(END, 512, WRITE, 3),
            link(DATA + 0x200, 2, WRITE, 4),
            Descriptor { flags: WRITE, ..readable(DATA + 0x300, 1) },
        ],
    );
    driver.submit(0);
    let (_, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!(buffers.fault().map(|fault| (fault.at, fault.len)), Some((GuestAddr(END), 512)));
    assert_eq!((buffers.readable().len(), buffers.writable().len()), (16, 3));
    assert_eq!(buffers.writable().write_at(2, &[7]), 1);
    assert_eq!(driver.guest.read(DATA + 0x300, 1), [7]);
    assert_eq!(driver.guest.read(DATA + 0x100, 8), [0; 8]);
}

#[test]
fn the_rest_of_a_chain_with_a_buffer_outside_memory_must_be_well_formed_too() {
    let first = Descriptor { flags: NEXT, next: 1, ..readable(END, 16) };
    let long = Descriptor { flags: NEXT, next: SIZE, ..readable(DATA, 1) };
    refuses_chain(&[first, long], RingError::BadNext { head: 0, next: SIZE, table: SIZE.into() });
    let looped = Descriptor { flags: NEXT, next: 0, ..readable(DATA, 1) };
    refuses_chain(&[first, looped], RingError::TooLong { head: 0, limit: 1024 });
}

#[test]
fn a_request_with_a_buffer_that_spans_a_hole_fails_alone() {
    let guest = Guest::new(&[(RING, 0x10_0000), (RING + 0x10_1000, 0x1000)]);
    let mut driver = Driver::new(&guest, 4, false, 0);
    let mut device = driver.start_device(0);
    let (at, len) = (RING + 0xf_f000, 0x2800);
    driver.put(0, at, len, 0, 0);
    fails_alone(&mut driver, &mut device, at, len, false);
}

#[test]
fn a_chain_of_four_gibibytes_is_refused() {
    const GIB: u64 = 1 << 30;
    let guest = Guest::new(&[(RING, 0x10_0000), (GIB, 5 * GIB)]);
    for lens in [[0x8000_0000, 0x8000_0000], [17, 0xffff_ffef], [0xffff_ffff, 1]] {
        for flags in [0, WRITE] {
            let mut driver = Driver::new(&guest, 4, false, 0);
            let mut device = driver.start_device(0);
            driver.put(0, GIB, lens[0], flags | NEXT, 1);
            driver.put(1, GIB, lens[1], flags, 0);
            refuses(&mut driver, &mut device, RingError::TooLarge { head: 0 });
        }
    }
}

#[test]
fn a_readable_descriptor_after_a_writable_one_is_refused() {
    let error = RingError::ReadableAfterWritable { head: 0 };
    let first = Descriptor { flags: WRITE | NEXT, next: 1, ..readable(DATA, 16) };
    refuses_chain(&[first, readable(DATA + 16, 16)], error);
    refuses_table(32, &[first, readable(DATA + 16, 16)], error);
    // An empty one counts all the same.
    refuses_chain(&[Descriptor { len: 0, ..first }, readable(DATA + 16, 16)], error);
}

#[test]
fn a_table_of_readable_entries_after_a_writable_descriptor_is_refused() {
    let (mut driver, mut device) = ring(SIZE);
    driver.put(0, DATA, 16, WRITE | NEXT, 1);
    driver.put(1, TABLES, 16, INDIRECT, 0);
    driver.put_table(TABLES, &[readable(DATA, 16)]);
    refuses(&mut driver, &mut device, RingError::ReadableAfterWritable { head: 0 });
}

#[test]
fn chains_before_a_malformed_one_are_taken() {
    let (mut driver, mut device) = ring(SIZE);
    driver.put(7, DATA, 3, 0, 0);
    driver.offer(7);
    driver.submit(SIZE);
    assert_eq!(device.available(), Ok(2));
    let mut buffers = Buffers::default();
    assert_eq!(device.pop(&mut buffers), Ok(Some(7)));
    assert_eq!(device.pop(&mut buffers), Err(RingError::BadHead { head: SIZE, size: SIZE }));
    device.push(7, 0);
    device.publish();
    assert_eq!(driver.used_index(), 1);
}

#[test]
fn a_ring_with_a_part_outside_memory_does_not_start() {
    let guest = guest();
    let driver = Driver::new(&guest, SIZE, false, 0);
    let good = driver.layout(true);
    let n = usize::from(SIZE);
    // The event fields at the end of the two rings count, negotiated or not.
    let parts = [
        ("descriptor table", 16 * n, 16),
        ("available ring", 6 + 2 * n, 2),
        ("used ring", 6 + 8 * n, 4),
    ];
    for (which, (part, len, align)) in parts.into_iter().enumerate() {
        let last = (END - len as u64) / align * align;
        for (at, starts) in [(last, true), (last + align, false), (END, false), (0, false)] {
            let mut layout = good;
            *[&mut layout.descriptors, &mut layout.available, &mut layout.used][which] = user(at);
            let started = SplitRing::start(&guest.device, layout, 0);
            assert_eq!(started.is_ok(), starts, "{part} at {at:#x}");
            if let Err(error) = started {
                assert_eq!(error, StartError { part, at: user(at), len });
            }
        }
    }
}

#[test]
fn a_ring_part_may_not_cross_from_region_to_region() {
    let guest = guest();
    let driver = Driver::new(&guest, SIZE, false, 0);
    let mut layout = driver.layout(true);
    layout.descriptors = user(TABLES); // the regions meet 0x20 bytes further
    let error = SplitRing::start(&guest.device, layout, 0).unwrap_err();
    assert_eq!((error.part, error.at), ("descriptor table", user(TABLES)));
}

#[test]
fn a_ring_stays_where_it_is_when_the_new_memory_does_not_hold_it() {
    let (mut driver, mut device) = ring(SIZE);
    let elsewhere = Guest::new(&[(DATA, 0x1000)]);
    assert!(device.move_to(&elsewhere.device).is_err());
    driver.put(0, DATA, 8, 0, 0);
    driver.submit(0);
    assert_eq!(pop(&mut device).unwrap().unwrap().1.readable().len(), 8);
}
