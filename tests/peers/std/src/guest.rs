//! A guest's memory, as a virtual machine monitor of rust-vmm's crates has it.

use std::fs::File;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};

/// Guest memory over memfds.
pub struct Guest(pub GuestMemoryMmap<()>);

impl Guest {
    /// Regions of (first address, bytes), sorted.
    pub fn new(places: &[(u64, usize)]) -> Self {
        let regions = places.iter().map(|&(at, size)| {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&fd, size as u64).unwrap();
            let file = FileOffset::new(File::from(fd), 0);
            GuestRegionMmap::from_range(GuestAddress(at), size, Some(file)).unwrap()
        });
        Self(GuestMemoryMmap::from_regions(regions.collect()).unwrap())
    }

    /// The regions as the front-end describes them.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let describe = |region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.0.iter().map(describe).collect()
    }

    /// Where a guest address is in this process: what the front-end says of a ring's place.
    pub fn host(&self, at: u64) -> u64 {
        self.0.get_host_address(GuestAddress(at)).unwrap() as u64
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.0.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}
