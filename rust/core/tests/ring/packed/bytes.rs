//! What lies in memory, byte by byte, as VIRTIO 1.3, "Packed Virtqueues" has it, and as DPDK 25.11 and
//! Linux 7.3 leave it.

use super::driver::*;
use crate::driver::readable;

fn chain(at: u64, len: u32) -> Piece {
    Piece { at, len, writable: true }
}

#[test]
fn used_descriptors_overwrite_the_ring_in_the_order_of_use() {
    let mut driver = Driver::new(&guest(), 4, false, 0);
    let mut device = driver.start_device();
    let two = [chain(DATA, 8), chain(DATA + 8, 8)];
    let ids = [driver.add(&two, Form::Direct), driver.add(&two[..1], Form::Direct)];
    driver.expose();
    let tokens = [(); 2].map(|()| pop(&mut device).unwrap().unwrap().0);
    assert_eq!(tokens.map(|token| (token.id, token.descriptors)), [(0, 2), (1, 1)]);
    let before = driver.guest.read(RING, 64);
    device.push(tokens[1], 5);
    device.push(tokens[0], 0);
    let hidden = driver.guest.read(RING, 16);
    assert_eq!(hidden, before[..16], "the first of a batch is written last");
    assert!(device.publish());
    let after = driver.guest.read(RING, 64);
    // Length, id, flags: WRITE, AVAIL and USED. The address stays what it was.
    assert_eq!(after[8..16], [5, 0, 0, 0, 1, 0, 0x82, 0x80]);
    // A list of one descriptor was in front, so the next stands in the slot behind.
    assert_eq!(after[24..32], [0, 0, 0, 0, 0, 0, 0x80, 0x80]);
    assert_eq!(after[32..], before[32..], "what is skipped stays as it was");
    assert_eq!(driver.collect(), [(ids[1], 5), (ids[0], 0)]);
    assert_eq!((device.next_available().slot, device.next_used().slot), (3, 3));
}

#[test]
fn in_the_second_lap_both_flags_are_clear() {
    let mut driver = Driver::new(&guest(), 2, false, 2);
    let mut device = driver.start_device();
    driver.add(&[chain(DATA, 8)], Form::Direct);
    driver.expose();
    let (token, _) = pop(&mut device).unwrap().unwrap();
    device.push(token, 7);
    device.publish();
    assert_eq!(driver.guest.read(RING + 8, 8), [7, 0, 0, 0, 0, 0, 2, 0]);
}

#[test]
fn a_ring_of_zeroes_has_nothing_available() {
    let driver = Driver::new(&guest(), 8, true, 0);
    let mut device = driver.start_device();
    assert_eq!(device.available(), Ok(0));
    assert_eq!(device.enable_kicks(0), Ok(false));
    assert_eq!(driver.guest.read(driver.device_area, 4), [0, 0x80, 2, 0], "slot 0, wrap 1, DESC");
    device.disable_kicks();
    assert_eq!(driver.guest.read(driver.device_area, 4), [0, 0, 1, 0]);
}

/// Sizes that are no power of two, and chains across the end.
#[test]
fn rings_of_any_size_are_gone_round_many_times() {
    for size in [1, 2, 3, 7, 100, 255, 256, 32768] {
        let mut driver = Driver::new(&guest(), size, true, 0);
        let mut device = driver.start_device();
        let most = u64::from(size.min(3));
        let mut done = 0;
        for turn in 0..u64::from(size).min(5000) * 5 {
            let pieces: Vec<_> = (0..1 + turn % most).map(|n| chain(DATA + 8 * n, 8)).collect();
            let id = driver.add(&pieces, Form::Direct);
            driver.expose();
            let (token, buffers) = pop(&mut device).unwrap().unwrap();
            assert_eq!((token.id, usize::from(token.descriptors)), (id, pieces.len()));
            assert_eq!(buffers.writable().len(), 8 * pieces.len() as u64);
            device.push(token, turn as u32);
            device.publish();
            assert_eq!(driver.collect(), [(id, turn as u32)]);
            done += pieces.len() as u64;
            let place = device.next_used();
            assert_eq!((place.slot, place.wrap), super::driver::place(done, size));
        }
        assert_eq!(device.available(), Ok(0));
    }
}

/// DPDK's virtio-user leaves NEXT and AVAIL in table entries, and ids of all kinds.
#[test]
fn of_a_table_entry_address_length_and_write_flag_count() {
    let mut driver = Driver::new(&guest(), 4, false, 0);
    let mut device = driver.start_device();
    driver.guest.write(DATA, b"headdata");
    let entries = [(DATA, 4, 0x1111, 0x81), (DATA + 4, 4, 0x2222, 0x81), (DATA + 64, 3, 0, 0x82)];
    for (at, (address, len, id, flags)) in (TABLES..).step_by(16).zip(entries) {
        driver.guest.write(at, &u64::to_le_bytes(address));
        driver.guest.write(at + 8, &u32::to_le_bytes(len));
        driver.guest.write(at + 12, &u16::to_le_bytes(id));
        driver.guest.write(at + 14, &u16::to_le_bytes(flags));
    }
    driver.add_raw(3, &[(TABLES, 48, INDIRECT)]);
    driver.expose();
    let (token, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!((token.id, token.descriptors), (3, 1));
    assert_eq!((readable(&buffers), buffers.writable().len()), (b"headdata".to_vec(), 3));
}

/// DPDK's virtio-user marks what it sends as writable: in the first entry, and in one more.
#[test]
fn on_a_transmit_queue_all_of_a_table_is_to_be_read() {
    let mut driver = Driver::new(&guest(), 4, false, 0);
    let layout =
        vhost_user_core::ring::PackedLayout { tables_are_readable: true, ..driver.layout() };
    let used = vhost_user_core::ring_position::PackedIndex::INITIAL;
    let mut device =
        vhost_user_core::ring::PackedRing::find(&driver.guest.device, layout, used).unwrap();
    driver.guest.write(DATA, b"headdata");
    let piece = |at, len, writable| Piece { at, len, writable };
    let pieces = [piece(DATA, 4, true), piece(DATA + 4, 2, false), piece(DATA + 6, 2, true)];
    driver.add(&pieces, Form::Indirect(TABLES));
    driver.expose();
    let (_, buffers) = pop(&mut device).unwrap().unwrap();
    assert_eq!((readable(&buffers), buffers.writable().len()), (b"headdata".to_vec(), 0));
}

/// DPDK lays the event areas out at multiples of 16, and so that they share a page.
#[test]
fn event_areas_need_an_alignment_of_four_only() {
    for areas in [[RING + 0xff0, RING + 0x1000], [RING + 0xffc, RING + 0xff8]] {
        let mut driver = Driver::new(&guest(), 255, true, 0);
        [driver.driver_area, driver.device_area] = areas;
        let mut device = driver.start_device();
        assert_eq!(device.enable_kicks(0), Ok(false));
        driver.add(&[chain(DATA, 8)], Form::Direct);
        assert!(driver.expose(), "it asked for a kick");
        let (token, _) = pop(&mut device).unwrap().unwrap();
        driver.disarm();
        device.push(token, 0);
        assert!(!device.publish(), "DISABLE");
    }
}

#[test]
fn parts_outside_of_memory_are_named() {
    use vhost_user_core::ring::{PackedRing, StartError};
    use vhost_user_core::ring_position::PackedIndex;
    let driver = Driver::new(&guest(), 8, true, 0);
    let beyond = crate::guest::user(crate::driver::END - 2);
    let error = |change: &dyn Fn(&mut vhost_user_core::ring::PackedLayout)| {
        let mut layout = driver.layout();
        change(&mut layout);
        PackedRing::find(&driver.guest.device, layout, PackedIndex::INITIAL).unwrap_err()
    };
    for (part, len, got) in [
        ("descriptor ring", 128, error(&|layout| layout.descriptors = beyond)),
        ("driver event area", 4, error(&|layout| layout.driver_area = beyond)),
        ("device event area", 4, error(&|layout| layout.device_area = beyond)),
    ] {
        assert_eq!(got, StartError { part, at: beyond, len });
    }
}

/// QEMU 11.1 tells the log's address of the device's event area; where the descriptors are follows from
/// the table of memory.
#[test]
fn what_is_written_to_a_packed_ring_is_marked_in_the_dirty_log() {
    use std::os::unix::fs::FileExt;
    use vhost_user_core::address::GuestAddr;
    use vhost_user_core::memory::{DirtyLog, MemoryPolicy};
    use vhost_user_core::ring::UsedLog;

    let fd = crate::guest::memfd(0x1000);
    let file = std::fs::File::from(fd.try_clone().unwrap());
    let log = DirtyLog::map(&MemoryPolicy::default(), fd.into(), 0, 0x1000).unwrap();
    let marked = || {
        let mut bits = [0; 0x1000];
        file.read_exact_at(&mut bits, 0).unwrap();
        file.write_all_at(&[0; 0x1000], 0).unwrap();
        let page = |page: &u64| bits[(page / 8) as usize] >> (page % 8) & 1 != 0;
        (0..0x1000 * 8).filter(page).collect::<Vec<u64>>()
    };
    // 300 descriptors are two pages, and the event areas lie in a third one.
    let mut driver = Driver::new(&guest(), 300, true, 0);
    [driver.driver_area, driver.device_area] = [RING + 0x3000, RING + 0x4000];
    let mut device = driver.start_device();
    let at = GuestAddr(driver.device_area);
    device.set_log(Some(UsedLog { log: std::sync::Arc::new(log), at }));
    let first = RING / 4096;
    device.enable_kicks(0).unwrap();
    assert_eq!(marked(), [first + 4]);
    for (turns, pages) in
        [(1, vec![first]), (256, vec![first, first + 1]), (60, vec![first, first + 1])]
    {
        let mut tokens = Vec::new();
        for _ in 0..turns {
            driver.add(&[chain(DATA, 8)], Form::Direct);
            driver.expose();
            tokens.push(pop(&mut device).unwrap().unwrap().0);
        }
        assert!(marked().is_empty(), "nothing was published");
        tokens.into_iter().for_each(|token| device.push(token, 8));
        device.publish();
        driver.collect();
        assert_eq!(marked(), pages);
    }
}
