//! Buffers and rings by I/O virtual addresses, and rings by guest addresses.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost_user_core::address::{GuestAddr, Iova, UserAddr};
use vhost_user_core::memory::{
    Access, Addressing, Buffers, Iotlb, Memory, Miss, Permission, Reads, Translation, Unreachable,
};

use crate::guest::{region, user};
use Access::{DeviceReadable, DeviceWritable};

const PAGE: u64 = 0x1000;

/// Two regions of 8 pages at guest addresses 0x10000 and 0x40000; each byte says which page it is
/// of, and addresses of the test are translated by the table.
struct Translated {
    iotlb: Arc<Iotlb>,
    memory: Arc<Memory>,
}

impl Translated {
    fn new(guest: bool) -> Self {
        let regions = [0x1_0000_u64, 0x4_0000].map(|at| {
            let (region, file) = region(at, 8 * PAGE);
            for page in 0..8 {
                let fill = [(at >> 12) as u8 + page as u8; PAGE as usize];
                std::os::unix::fs::FileExt::write_at(&file, &fill, page * PAGE).unwrap();
            }
            region
        });
        let iotlb = Arc::new(Iotlb::default());
        let addressing = Addressing { guest, iotlb: Some(Arc::clone(&iotlb)) };
        let memory = Arc::new(Memory::addressed(regions.to_vec(), addressing).unwrap());
        Self { iotlb, memory: memory.for_queue() }
    }

    fn map(&self, iova: u64, pages: u64, guest: u64, permission: Permission) {
        let to = user(guest).0;
        self.iotlb.update(Translation::new(Iova(iova), pages * PAGE, to, permission).unwrap());
    }

    fn buffers(&self, parts: &[(u64, u32, Access)]) -> Buffers {
        let mut buffers = Buffers::default();
        buffers.begin(&self.memory);
        parts.iter().for_each(|&(at, len, access)| buffers.add(GuestAddr(at), len, access));
        buffers
    }

    fn read(&self, at: u64, len: u32) -> Vec<u8> {
        let buffers = self.buffers(&[(at, len, DeviceReadable)]);
        assert_eq!(buffers.fault(), None);
        let mut bytes = vec![0; len as usize];
        buffers.readable().read_at(0, &mut bytes);
        bytes
    }
}

fn misses(iovas: &[u64], access: Access) -> Vec<Miss> {
    iovas.iter().map(|&iova| Miss { iova: Iova(iova), access }).collect()
}

#[test]
fn a_buffer_crosses_translations_and_regions() {
    let memory = Translated::new(false);
    memory.map(0xa000, 1, 0x1_3000, Permission::ALL);
    memory.map(0xb000, 1, 0x4_0000, Permission::ALL);
    memory.map(0xc000, 2, 0x1_0000, Permission::ALL);
    let bytes = memory.read(0xaffe, 2 * PAGE as u32 + 4);
    assert_eq!(bytes[..3], [0x13, 0x13, 0x40]);
    assert_eq!(bytes[0x1001..0x1003], [0x40, 0x10]);
    assert_eq!(bytes[0x2001..], [0x10, 0x11, 0x11]);
}

#[test]
fn pages_that_follow_each_other_are_one_piece() {
    let memory = Translated::new(false);
    for page in 0..4 {
        memory.map(0xa000 + page * PAGE, 1, 0x1_2000 + page * PAGE, Permission::ALL);
    }
    let buffers = memory.buffers(&[(0xa800, 3 * PAGE as u32, DeviceWritable)]);
    assert_eq!(buffers.writable().parts(0, u64::MAX).count(), 1);
    assert_eq!(buffers.writable().len(), 3 * PAGE);
}

#[test]
fn a_missing_translation_is_asked_for_page_by_page() {
    let memory = Translated::new(false);
    memory.map(0xb000, 1, 0x1_3000, Permission::ALL);
    let buffers = memory.buffers(&[(0xa123, 3 * PAGE as u32, DeviceReadable)]);
    assert_eq!(buffers.fault().unwrap().reason, Unreachable::Untranslated);
    assert_eq!(buffers.misses(), misses(&[0xa123, 0xc000, 0xd000], DeviceReadable));
    assert_eq!(buffers.readable().len(), 0);
}

#[test]
fn all_buffers_of_a_chain_are_asked_for_at_once() {
    let memory = Translated::new(false);
    let parts =
        [(0x1000, 16, DeviceReadable), (0x2000, 16, DeviceWritable), (0x2010, 1, DeviceWritable)];
    let buffers = memory.buffers(&parts);
    // One question for each page.
    let expected = [misses(&[0x1000], DeviceReadable), misses(&[0x2000], DeviceWritable)];
    assert_eq!(buffers.misses(), expected.concat());
    let buffers = memory.buffers(&[(0x1000, 16, DeviceReadable), (0x1ff0, 16, DeviceWritable)]);
    assert_eq!(buffers.misses(), misses(&[0x1000], DeviceWritable));
}

#[test]
fn no_more_than_512_translations_are_asked_for_at_once() {
    let memory = Translated::new(false);
    let buffers = memory.buffers(&[(0, u32::MAX, DeviceReadable)]);
    assert_eq!(buffers.misses().len(), 512);
    let buffers = memory.buffers(&[(u64::MAX - 0xfff, 0x1000, DeviceReadable)]);
    assert_eq!(buffers.fault().unwrap().reason, Unreachable::Outside, "its end would wrap");
}

#[test]
fn a_buffer_that_may_be_read_is_not_written() {
    let memory = Translated::new(false);
    memory.map(0xa000, 1, 0x1_3000, Permission { read: true, write: false });
    assert_eq!(memory.read(0xa000, 1), [0x13]);
    let buffers = memory.buffers(&[(0xa000, 1, DeviceWritable)]);
    assert_eq!(buffers.misses(), misses(&[0xa000], DeviceWritable));
    assert_eq!(buffers.writable().len(), 0);
}

#[test]
fn a_translation_that_leaves_memory_is_a_fault_and_no_miss() {
    let memory = Translated::new(false);
    memory.map(0xa000, 9, 0x1_0000, Permission::ALL);
    let buffers = memory.buffers(&[(0xa000 + 8 * PAGE - 1, 2, DeviceReadable)]);
    assert_eq!(buffers.fault().unwrap().reason, Unreachable::Outside);
    assert!(buffers.misses().is_empty());
    assert!(memory.memory.has_target(user(0x1_0000).0, 8 * PAGE));
    assert!(!memory.memory.has_target(user(0x1_0000).0, 8 * PAGE + 1));
    assert!(!memory.memory.has_target(u64::MAX, u64::MAX));
}

#[test]
fn what_was_popped_keeps_its_memory_when_its_translation_goes() {
    let memory = Translated::new(false);
    memory.map(0xa000, 1, 0x1_3000, Permission::ALL);
    let buffers = memory.buffers(&[(0xa000, 1, DeviceReadable)]);
    memory.iotlb.invalidate(Iova(0), Iova(u64::MAX));
    let mut byte = [0];
    buffers.readable().read_at(0, &mut byte);
    assert_eq!(byte, [0x13]);
    assert!(memory.buffers(&[(0xa000, 1, DeviceReadable)]).fault().is_some());
}

#[test]
fn an_indirect_table_may_cross_translations() {
    let memory = Translated::new(false);
    memory.map(0xa000, 1, 0x1_3000, Permission::ALL);
    let mut reads = Reads::default();
    let error = reads.read(&memory.memory, GuestAddr(0xaff0), 32).unwrap_err();
    assert_eq!(error.reason, Unreachable::Untranslated);
    memory.map(0xb000, 1, 0x4_1000, Permission::ALL);
    let table = reads.read(&memory.memory, GuestAddr(0xaff0), 32).unwrap().unwrap();
    assert_eq!((table[15], table[16]), (0x13, 0x41));
}

#[test]
fn a_ring_part_in_scattered_pages_is_one_window_onto_the_same_memory() {
    let memory = Translated::new(false);
    memory.map(0xa000, 1, 0x1_3000, Permission::ALL);
    memory.map(0xb000, 1, 0x4_1000, Permission::ALL);
    memory.map(0xc000, 1, 0x1_1000, Permission::ALL);
    let part = |access| memory.memory.ring_part(UserAddr(0xa100), 0x2100, 16, access);
    let window = part(DeviceReadable).unwrap();
    assert_eq!(window.load_u8(0, Ordering::Relaxed), 0x13);
    assert_eq!(window.load_u8(0xf00, Ordering::Relaxed), 0x41);
    assert_eq!(window.load_u8(0x20ff, Ordering::Relaxed), 0x11);
    window.store_u8(0xf00, 7, Ordering::Relaxed);
    assert_eq!(memory.read(0xb000, 1), [7]);
    memory.map(0xb000, 1, 0x4_1000, Permission { read: true, write: false });
    assert!(part(DeviceWritable).is_none(), "it may not be written");
    assert!(part(DeviceReadable).is_some());
}

#[test]
fn a_ring_part_with_a_translation_for_half_a_page_is_no_window() {
    let memory = Translated::new(false);
    let half = Translation::new(Iova(0xa000), 0x800, user(0x1_3000).0, Permission::ALL).unwrap();
    memory.iotlb.update(half);
    let rest = Translation::new(Iova(0xa800), 0x800, user(0x4_1800).0, Permission::ALL).unwrap();
    memory.iotlb.update(rest);
    assert!(memory.memory.ring_part(UserAddr(0xa000), 0x1000, 16, DeviceReadable).is_none());
}

#[test]
fn with_guest_addresses_translations_lead_to_these() {
    let memory = Translated::new(true);
    let entry = Translation::new(Iova(0xa000), PAGE, 0x4_2000, Permission::ALL).unwrap();
    memory.iotlb.update(entry);
    assert_eq!(memory.read(0xafff, 1), [0x42]);
    assert!(memory.memory.has_target(0x4_0000, 8 * PAGE));
    assert!(!memory.memory.has_target(user(0x4_0000).0, 1));
}

#[test]
fn with_guest_addresses_rings_are_named_by_these_and_user_addresses_do_not_matter() {
    let (one, file) = region(0x1_0000, PAGE);
    std::os::unix::fs::FileExt::write_at(&file, &[5], 0).unwrap();
    let other = region(0x4_0000, PAGE).0;
    let addressing = Addressing { guest: true, iotlb: None };
    let memory = Arc::new(Memory::addressed(vec![one, other], addressing).unwrap());
    let window = memory.window(UserAddr(0x1_0000), 16, 16).unwrap();
    assert_eq!(window.load_u8(0, Ordering::Relaxed), 5);
    assert!(memory.window(user(0x1_0000), 16, 16).is_none());
    assert!(memory.window(UserAddr(0x1_0ff8), 16, 2).is_none());
    assert!(Arc::ptr_eq(&memory.for_queue(), &memory), "one table is enough for all queues");
}
