//! Guest memory over memfds: mapped once for the driver's side, once by the code under test.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::memory::{Extent, Memory, MemoryPolicy, Region};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Added to guest addresses to make the front-end's, so that a mix-up shows.
const USER_OFFSET: u64 = 0x7000_0000_0000;

/// A guest's memory, seen from both sides.
pub struct Guest {
    /// The driver's mapping.
    pub driver: GuestMemoryMmap<()>,
    /// What the code under test mapped.
    pub device: Arc<Memory>,
}

/// A memfd of `size` bytes.
pub fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("ring-test-guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

/// A region of zeroes at `guest`, and its file.
pub fn region(guest: u64, size: u64) -> (Arc<Region>, File) {
    let fd = memfd(size);
    let file = File::from(fd.try_clone().unwrap());
    let extent = Extent { guest: GuestAddr(guest), user: user(guest), size };
    (Region::map(&MemoryPolicy::default(), extent, 0, fd).unwrap(), file)
}

/// The front-end's address of a guest address.
pub fn user(guest: u64) -> UserAddr {
    UserAddr(guest + USER_OFFSET)
}

impl Guest {
    /// A guest of these regions: (first address, bytes), sorted.
    pub fn new(places: &[(u64, u64)]) -> Arc<Self> {
        let regions: Vec<_> = places.iter().map(|&(at, size)| region(at, size)).collect();
        let files = places.iter().zip(&regions).map(|(&(at, size), (_, file))| {
            let file = FileOffset::new(file.try_clone().unwrap(), 0);
            (GuestAddress(at), size as usize, Some(file))
        });
        let driver = GuestMemoryMmap::from_ranges_with_files(files).unwrap();
        let regions = regions.into_iter().map(|(region, _)| region).collect();
        Arc::new(Self { driver, device: Arc::new(Memory::new(regions).unwrap()) })
    }

    /// Writes as the driver.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.driver.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Reads as the driver.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Stores a little-endian `u16` as the driver.
    pub fn store_u16(&self, at: u64, value: u16, order: Ordering) {
        self.driver.store(value.to_le(), GuestAddress(at), order).unwrap();
    }

    /// Loads a little-endian `u16` as the driver.
    pub fn load_u16(&self, at: u64, order: Ordering) -> u16 {
        u16::from_le(self.driver.load(GuestAddress(at), order).unwrap())
    }
}
