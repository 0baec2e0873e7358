//! The file that holds the record of requests in flight.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::file::{FilePart, map_part};
use super::policy::{MappedBytes, MemoryPolicy};
use super::region_error::RegionError;
use super::segment::GuestSlice;
use super::window::Window;
use crate::sys::guard::Loss;
use crate::sys::mmap::Mapping;
use crate::sys::received_fd::ReceivedFd;

/// The alignment of each queue's part: VIRTIO rings' cache lines, as in QEMU and DPDK.
const ALIGN: usize = 64;

/// A mapped record of requests in flight. The front-end keeps its file, and gives it to the
/// back-end that comes after a crash.
#[derive(Debug)]
pub struct InflightFile {
    mapping: Arc<Mapping>,
    /// Where the record is in the mapping.
    place: GuestSlice,
    _mapped: MappedBytes,
}

impl InflightFile {
    /// Makes a file of `len` zeroes that nobody can make shorter or longer.
    pub fn create(len: u64) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("vhost-user requests in flight", flags)?;
        ftruncate(&fd, len)?;
        fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(fd)
    }

    /// Maps `len` bytes of `fd` from `offset` on.
    pub fn map(
        policy: &MemoryPolicy,
        fd: ReceivedFd,
        offset: u64,
        len: u64,
    ) -> Result<Self, RegionError> {
        let FilePart { mapping, place, bytes } = map_part(policy, &fd, offset, len)?;
        Ok(Self { mapping: Arc::new(mapping), place, _mapped: bytes })
    }

    /// Returns `len` bytes from `at` on; `None` if they are not all inside, or not aligned.
    pub fn window(&self, at: usize, len: usize) -> Option<Window> {
        at.checked_add(len).filter(|&end| end <= self.place.len())?;
        let place = GuestSlice::new(self.place.base().wrapping_add(at), len);
        Window::of_file(&self.mapping, place, len, ALIGN)
    }

    /// Has `loss` told if the front-end cuts the file.
    pub fn watch(&self, loss: &Arc<Loss>) {
        self.mapping.watch(loss);
    }
}
