//! What a driver may do though few do it. Refusing any of it would be a failure.

use std::sync::atomic::Ordering;

use vhost_user_core::ring::SplitRing;

use crate::driver::{
    DATA, Descriptor, Driver, END, Form, INDIRECT, NEXT, Piece, RING, TABLES, WRITE, chain_of,
    guest, pop, readable,
};
use crate::guest::Guest;

const SIZE: u16 = 256;

fn ring(size: u16) -> (Driver, SplitRing) {
    let driver = Driver::new(&guest(), size, false, 0);
    let device = driver.start_device(0);
    (driver, device)
}

fn piece(at: u64, len: u32, writable: bool) -> Piece {
    Piece { at, len, writable }
}

#[test]
fn an_indirect_table_may_be_longer_than_the_ring() {
    for size in [1, 2, SIZE] {
        for count in [300, 515, 1024] {
            let (mut driver, mut device) = ring(size);
            let bytes: Vec<u8> = (0..count).map(|n| n as u8).collect();
            driver.guest.write(DATA, &bytes);
            let pieces: Vec<_> = (0..count).map(|n| piece(DATA + n, 1, false)).collect();
            driver.add(&pieces, Form::Indirect(0, TABLES));
            driver.expose();
            assert_eq!(readable(&pop(&mut device).unwrap().unwrap().1), bytes);
        }
    }
}

#[test]
fn direct_descriptors_may_be_followed_by_one_indirect_table() {
    let (mut driver, mut device) = ring(SIZE);
    driver.guest.write(DATA, b"header, data");
    let pieces = [
        piece(DATA, 6, false),
        piece(DATA + 6, 2, false),
        piece(DATA + 8, 4, false),
        piece(DATA + 100, 10, true),
        piece(DATA + 200, 1, true),
    ];
    let head = driver.add(&pieces, Form::Indirect(2, TABLES));
    driver.expose();
    let (popped, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!((popped, readable(&buffers).as_slice()), (head, b"header, data".as_slice()));
    assert_eq!(buffers.writable().write_at(0, b"ten bytes.!"), 11);
    assert_eq!(driver.guest.read(DATA + 100, 10), b"ten bytes.");
    assert_eq!(driver.guest.read(DATA + 200, 1), b"!");
}

/// VIRTIO 1.3, "Indirect Descriptors": the device ignores the write-only flag of a descriptor
/// that refers to a table.
#[test]
fn a_write_flag_on_an_indirect_descriptor_means_nothing() {
    let (mut driver, mut device) = ring(SIZE);
    let pieces = [piece(DATA, 8, false), piece(DATA + 8, 8, true)];
    driver.put_table(TABLES, &chain_of(&pieces));
    driver.put(0, TABLES, 32, INDIRECT | WRITE, 0);
    driver.submit(0);
    let (_, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!((buffers.readable().len(), buffers.writable().len()), (8, 8));
}

#[test]
fn an_indirect_table_may_lie_anywhere() {
    // Unaligned; across the border of two regions; at the very end of memory.
    for at in [TABLES + 3, TABLES + 0x18, END - 32] {
        let (mut driver, mut device) = ring(SIZE);
        driver.guest.write(DATA, b"somewhere");
        let pieces = [piece(DATA, 4, false), piece(DATA + 4, 5, false)];
        driver.add(&pieces, Form::Indirect(0, at));
        driver.expose();
        assert_eq!(readable(&pop(&mut device).unwrap().unwrap().1), b"somewhere");
    }
}

#[test]
fn descriptors_may_lead_to_and_fro() {
    let (mut driver, mut device) = ring(SIZE);
    driver.guest.write(DATA, b"third first second");
    driver.put(9, DATA + 6, 6, NEXT, 255);
    driver.put(255, DATA + 12, 6, NEXT, 0);
    driver.put(0, DATA, 6, 0, 0xffff);
    driver.submit(9);
    let (head, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!((head, readable(&buffers).as_slice()), (9, b"first secondthird ".as_slice()));
}

#[test]
fn a_buffer_may_cross_adjacent_regions() {
    let places = [(RING, 0x10_0000), (RING + 0x10_0000, 0x1000), (RING + 0x10_1000, 0x1000)];
    let guest = Guest::new(&places);
    let mut driver = Driver::new(&guest, SIZE, false, 0);
    let mut device = driver.start_device(0);
    let (at, len) = (RING + 0xf_fff0, 0x1030);
    let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    guest.write(at, &bytes);
    driver.add(&[piece(at, len, false), piece(at, len, true)], Form::Direct);
    driver.expose();
    let (_, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!(readable(&buffers), bytes);
    assert_eq!(buffers.readable().parts(0, u64::from(len)).count(), 3);
    let mut middle = [0; 32];
    assert_eq!(buffers.readable().read_at(0x1000, &mut middle), 32);
    assert_eq!(middle, bytes[0x1000..0x1020]);
    let turned: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
    assert_eq!(buffers.writable().write_at(0, &turned), turned.len());
    assert_eq!(guest.read(at, turned.len()), turned);
}

#[test]
fn the_last_byte_of_memory_is_memory() {
    let (mut driver, mut device) = ring(SIZE);
    driver.guest.write(END - 1, &[77]);
    driver.add(&[piece(END - 1, 1, false)], Form::Direct);
    driver.expose();
    assert_eq!(readable(&pop(&mut device).unwrap().unwrap().1), [77]);
}

#[test]
fn empty_descriptors_contribute_nothing() {
    let chains: [&[Piece]; 3] = [
        &[piece(DATA, 0, false)],
        &[piece(DATA, 2, false), piece(DATA + 50, 0, false), piece(DATA + 2, 2, false)],
        // Where an empty buffer would be does not matter.
        &[piece(u64::MAX, 0, false), piece(0, 0, true), piece(DATA, 0, true)],
    ];
    for (pieces, expected) in chains.into_iter().zip(["", "abcd", ""]) {
        let (mut driver, mut device) = ring(SIZE);
        driver.guest.write(DATA, b"abcd");
        let head = driver.add(pieces, Form::Direct);
        driver.expose();
        let (popped, buffers) = pop(&mut device).unwrap().unwrap();
        assert_eq!((popped, readable(&buffers).as_slice()), (head, expected.as_bytes()));
        assert!(buffers.writable().is_empty());
        assert_eq!(buffers.writable().write_at(0, b"x"), 0);
        device.push(popped, 0);
        device.publish();
        assert_eq!(driver.collect(), [(u32::from(head), 0)]);
    }
}

#[test]
fn a_chain_may_be_one_byte_short_of_four_gibibytes() {
    const GIB: u64 = 1 << 30;
    let guest = Guest::new(&[(RING, 0x10_0000), (GIB, 5 * GIB)]);
    let mut driver = Driver::new(&guest, 4, false, 0);
    let mut device = driver.start_device(0);
    driver.add(&[piece(GIB, 16, false), piece(GIB, u32::MAX - 16, true)], Form::Direct);
    driver.expose();
    let (_, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!(buffers.writable().len(), u64::from(u32::MAX) - 16);
}

#[test]
fn unknown_flags_of_the_available_ring_mean_nothing() {
    let (mut driver, mut device) = ring(SIZE);
    for (flags, notified) in [(0xffff, false), (0xfffe, true), (1, false), (0, true)] {
        driver.guest.store_u16(driver.available, flags, Ordering::Relaxed);
        let head = driver.add(&[piece(DATA, 8, true)], Form::Direct);
        driver.expose();
        pop(&mut device).unwrap().unwrap();
        device.push(head, 8);
        assert_eq!(device.publish(), notified);
        assert_eq!(driver.collect(), [(u32::from(head), 8)]);
    }
}

#[test]
fn unknown_flags_of_a_descriptor_mean_nothing() {
    let (mut driver, mut device) = ring(SIZE);
    driver.put(0, DATA, 8, 0xfff8, 0xffff);
    driver.submit(0);
    assert_eq!(pop(&mut device).unwrap().unwrap().1.readable().len(), 8);
}

#[test]
fn two_hundred_thousand_requests_go_through_rings_of_every_extreme_size() {
    for size in [1, 2, 32768] {
        for event_idx in [false, true] {
            run_through(size, event_idx, 200_000);
        }
    }
}

/// Requests in bursts that fill the ring, each with its number to read and its square to write.
fn run_through(size: u16, event_idx: bool, requests: u64) {
    let mut driver = Driver::new(&guest(), size, event_idx, 0xff00);
    let mut device = driver.start_device(0xff00);
    let mut sent = 0;
    let mut back = 0;
    while back < requests {
        let burst = u64::from(size).min(requests - sent);
        for slot in 0..burst {
            let at = DATA + 16 * slot;
            driver.guest.write(at, &(sent + slot).to_le_bytes());
            let halves = [piece(at, 8, false), piece(at + 8, 8, true)];
            driver.add(&halves, Form::Indirect(0, TABLES + 32 * slot));
        }
        sent += burst;
        driver.expose();
        while let Some((head, buffers)) = pop(&mut device).unwrap() {
            let number = u64::from_le_bytes(readable(&buffers).try_into().unwrap());
            assert_eq!(buffers.writable().write_at(0, &(number * number).to_le_bytes()), 8);
            device.push(head, 8);
        }
        device.publish();
        for slot in 0..driver.collect().len() as u64 {
            let square = driver.guest.read(DATA + 16 * slot + 8, 8);
            let number = sent - burst + slot;
            assert_eq!(u64::from_le_bytes(square.try_into().unwrap()), number * number);
            back += 1;
        }
        assert_eq!(back, sent);
    }
    assert_eq!(driver.used_index(), 0xff00_u16.wrapping_add(requests as u16));
}

#[test]
fn a_ring_starts_where_the_front_end_says() {
    let guest = guest();
    for base in [0, 1, 0x8000, 0xffff] {
        let mut driver = Driver::new(&guest, SIZE, false, base);
        let mut device = driver.start_device(base);
        assert_eq!(device.next_available(), base);
        let head = driver.add(&[piece(DATA, 1, false)], Form::Direct);
        driver.expose();
        assert_eq!(pop(&mut device).unwrap().unwrap().0, head);
        assert_eq!(device.next_available(), base.wrapping_add(1));
    }
}

/// Some front-ends name the driver's index as the base of a ring that no device has seen: what
/// the driver made available early would never be served.
#[test]
fn what_the_driver_made_available_before_the_start_is_served() {
    let mut driver = Driver::new(&guest(), SIZE, false, 0);
    for slot in 0..3 {
        driver.add(&[piece(DATA + slot, 1, false)], Form::Direct);
    }
    driver.expose();
    let mut device = driver.start_device(3);
    assert_eq!((device.next_available(), device.available()), (0, Ok(3)));
}

#[test]
fn a_used_index_that_cannot_be_right_does_not_move_the_base() {
    let driver = Driver::new(&guest(), SIZE, false, 100);
    driver.guest.store_u16(driver.used + 2, 0x4000, Ordering::Relaxed);
    assert_eq!(driver.start_device(100).next_available(), 100);
}

#[test]
fn a_ring_goes_on_in_another_table_of_memory() {
    let (mut driver, mut device) = ring(SIZE);
    let beside = Guest::new(&[(END, 0x1000)]);
    driver.guest.write(DATA, b"old");
    driver.add(&[piece(DATA, 3, false)], Form::Direct);
    driver.add(&[piece(END, 3, false)], Form::Direct);
    driver.expose();
    let (_, before) = pop(&mut device).unwrap().unwrap();
    let region = beside.device.regions()[0].clone();
    let memory = driver.guest.device.with(region).unwrap();
    device.move_to(&std::sync::Arc::new(memory)).unwrap();
    beside.write(END, b"new");
    assert_eq!(readable(&pop(&mut device).unwrap().unwrap().1), b"new");
    assert_eq!(readable(&before), b"old", "a request keeps the memory that it began with");
}

#[test]
fn a_descriptor_is_sixteen_bytes_as_the_standard_draws_it() {
    let descriptor =
        Descriptor { at: 0x0807_0605_0403_0201, len: 0x0c0b_0a09, flags: 0x0e0d, next: 0x100f };
    assert_eq!(descriptor.bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
}
