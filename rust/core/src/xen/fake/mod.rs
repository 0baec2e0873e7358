//! A hypervisor of memory files, for tests without one.
//!
//! It does what Linux's devices were seen to do on Xen 4.17, above all where that is surprising:
//!
//! * MMAPBATCH_V2 succeeds although pages failed; each page has its own result, and a domain that
//!   does not exist is such a result. Only pages that are paged out fail the call as well. A page
//!   with an error is not there: touching it is a fault.
//! * A call to map grants takes any references and makes a list of them, which stays in the open
//!   file until it is given up. Its `mmap` then fails as a whole with EINVAL for one that is not
//!   granted, for writing where reading was granted, for one that is mapped too often already, and
//!   for a list that was mapped before or has another length.
//! * Grant copy succeeds although pieces failed; each has a status. It fails as a whole when it
//!   cannot use the memory here.

mod device;
mod domain;
mod errors;
mod ops;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, fstat, memfd_create};

use super::{XEN_PAGE, XenDevice};
use device::Device;
use domain::{Domain, Domains, Grant, Ram};

/// A hypervisor with domains of memory files.
#[derive(Debug)]
pub struct FakeXen(Mutex<State>);

/// Calls so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenCalls {
    /// Foreign map calls, tries of single frames among them.
    pub map_frames: u64,
    /// Frames that they were for.
    pub frames: u64,
    /// How many of them came through a descriptor that was not restricted to a domain.
    pub unrestricted: u64,
    /// Grant map calls, failed ones among them.
    pub map_grants: u64,
    /// Grants that were mapped by them.
    pub grants: u64,
    /// Grant unmap calls.
    pub unmap_grants: u64,
    /// Grant copy calls.
    pub copy_grants: u64,
    /// Pieces that were copied by them.
    pub pieces: u64,
}

#[derive(Debug)]
struct State {
    /// By the number of the file.
    devices: HashMap<u64, Device>,
    domains: Domains,
    calls: XenCalls,
    max_grants: usize,
    host_page: usize,
    /// So many grant maps still fail because pages are paged out.
    busy: u32,
    can_open: bool,
    opens_another: bool,
    can_restrict: bool,
    can_copy: bool,
}

impl FakeXen {
    /// A hypervisor without guests.
    #[allow(clippy::new_without_default)] // It is always shared.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            devices: HashMap::new(),
            domains: Domains::default(),
            calls: XenCalls::default(),
            max_grants: 65536,
            host_page: XEN_PAGE as usize,
            busy: 0,
            can_open: true,
            opens_another: false,
            can_restrict: true,
            can_copy: true,
        })))
    }

    /// Gives a domain memory: `pages` pages of `file`, as frames from `first` on. The domain is
    /// created with its first memory.
    pub fn add_memory(&self, domid: u16, first: u64, pages: u64, file: OwnedFd) {
        let ram = Ram { first, pages, file: Arc::new(file) };
        self.lock().domains.0.entry(domid).or_default().ram.push(ram);
    }

    /// The domain is gone.
    pub fn destroy(&self, domid: u16) {
        self.lock().domains.0.remove(&domid);
    }

    /// Takes a frame out of a domain's memory.
    pub fn add_hole(&self, domid: u16, frame: u64) {
        self.domain(domid, |domain| domain.holes.insert(frame));
    }

    /// A frame is found paged out the next `times` times.
    pub fn page_out(&self, domid: u16, frame: u64, times: u32) {
        self.domain(domid, |domain| domain.paged_out.insert(frame, times));
    }

    /// A domain grants a frame.
    pub fn grant(&self, domid: u16, reference: u32, frame: u64, writable: bool) {
        let grant = Grant::new(frame, writable);
        self.domain(domid, |domain| domain.grants.insert(reference, grant));
    }

    /// A domain ends a grant; `false` if it is in use, or was none: a guest's device is dead then.
    pub fn revoke(&self, domid: u16, reference: u32) -> bool {
        self.domain(domid, |domain| match domain.grants.get(&reference) {
            Some(grant) if !grant.is_in_use() => domain.grants.remove(&reference).is_some(),
            _ => false,
        })
        .unwrap_or(false)
    }

    /// References of a domain that are mapped, lowest first: what its grant table shows.
    pub fn in_use(&self, domid: u16) -> Vec<u32> {
        let used = |domain: &mut Domain| {
            let grants = domain.grants.iter().filter(|(_, grant)| grant.is_in_use());
            let mut used: Vec<_> = grants.map(|(&reference, _)| reference).collect();
            used.sort_unstable();
            used
        };
        self.domain(domid, used).unwrap_or_default()
    }

    /// Calls so far.
    pub fn calls(&self) -> XenCalls {
        self.lock().calls
    }

    /// Most references in a call from now on.
    pub fn set_max_grants(&self, max: usize) {
        self.lock().max_grants = max;
    }

    /// The host's pages have so many bytes from now on, a multiple of the hypervisor's.
    pub fn set_host_page(&self, bytes: usize) {
        self.lock().host_page = bytes;
    }

    /// The next `times` grant maps find a page paged out.
    pub fn set_busy(&self, times: u32) {
        self.lock().busy = times;
    }

    /// Whether this process may open devices itself.
    pub fn set_can_open(&self, can: bool) {
        self.lock().can_open = can;
    }

    /// Whether another file stands where this process looks for its devices.
    pub fn set_opens_another(&self, another: bool) {
        self.lock().opens_another = another;
    }

    /// Whether the kernel is new enough to restrict a descriptor to a domain.
    pub fn set_can_restrict(&self, can: bool) {
        self.lock().can_restrict = can;
    }

    /// Whether grant copy can use the memory here.
    pub fn set_can_copy(&self, can: bool) {
        self.lock().can_copy = can;
    }

    /// Lists of grants that were not given up: each takes space in the kernel as long as a copy of
    /// the descriptor is open.
    pub fn lists(&self) -> usize {
        self.lock().devices.values().map(|device| device.lists.len()).sum()
    }

    /// Opens a device as a front-end does, to pass it on.
    pub fn device(&self, kind: XenDevice) -> io::Result<OwnedFd> {
        let file = memfd_create("fake xen device", MemfdFlags::CLOEXEC)?;
        let copy = file.try_clone()?;
        self.lock().devices.insert(number(file.as_fd()), Device::new(kind, copy));
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn domain<T>(&self, domid: u16, look: impl FnOnce(&mut Domain) -> T) -> Option<T> {
        self.lock().domains.0.get_mut(&domid).map(look)
    }
}

impl State {
    fn device(&mut self, fd: BorrowedFd<'_>) -> io::Result<&mut Device> {
        let unknown = || io::Error::from_raw_os_error(libc::ENOTTY);
        self.devices.get_mut(&number(fd)).ok_or_else(unknown)
    }

    fn may_reach(&mut self, privcmd: BorrowedFd<'_>, domid: u16) -> io::Result<()> {
        match self.device(privcmd)?.only {
            Some(only) if only != domid => Err(io::Error::from_raw_os_error(libc::EPERM)),
            _ => Ok(()),
        }
    }
}

/// The number of an open file; 0 is none's.
fn number(fd: BorrowedFd<'_>) -> u64 {
    fstat(fd).map_or(0, |stat| stat.st_ino)
}
