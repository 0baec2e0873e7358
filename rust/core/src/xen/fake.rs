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

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, fstat, memfd_create};

use super::{Frames, GrantCopy, GrantRef, XEN_PAGE, XenDevice, XenOps};
use crate::sys::mmap::{Mapping, Protection};

/// Mappings of one reference that a PV domain can have at the same time.
const MAPPINGS_OF_A_GRANT: u32 = 64;

/// Hypervisor statuses: general error, bad domain, bad reference.
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const BAD_REFERENCE: i16 = -3;

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
    domains: HashMap<u16, Domain>,
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

#[derive(Debug)]
struct Device {
    kind: XenDevice,
    /// Keeps the file's number from being given to another.
    _file: OwnedFd,
    only: Option<u16>,
    next_index: u64,
    lists: HashMap<u64, List>,
    areas: HashMap<u64, Area>,
}

/// Grants that may be mapped.
#[derive(Debug)]
struct List {
    grants: Vec<GrantRef>,
    is_mapped: bool,
}

/// Grants that are mapped.
#[derive(Debug)]
struct Area {
    grants: Vec<GrantRef>,
    writable: bool,
}

#[derive(Debug, Default)]
struct Domain {
    ram: Vec<Ram>,
    holes: HashSet<u64>,
    /// How many more times a frame is found paged out.
    paged_out: HashMap<u64, u32>,
    grants: HashMap<u32, Grant>,
}

/// Frames that are the pages of a file.
#[derive(Debug)]
struct Ram {
    first: u64,
    pages: u64,
    file: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Grant {
    frame: u64,
    writable: bool,
    readers: u32,
    writers: u32,
}

/// A page of a file.
type Place = (Arc<OwnedFd>, u64);

impl FakeXen {
    /// A hypervisor without guests.
    #[allow(clippy::new_without_default)] // It is always shared.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            devices: HashMap::new(),
            domains: HashMap::new(),
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
        self.lock().domains.entry(domid).or_default().ram.push(ram);
    }

    /// The domain is gone.
    pub fn destroy(&self, domid: u16) {
        self.lock().domains.remove(&domid);
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
        let grant = Grant { frame, writable, readers: 0, writers: 0 };
        self.domain(domid, |domain| domain.grants.insert(reference, grant));
    }

    /// A domain ends a grant; `false` if it is in use, or was none: a guest's device is dead then.
    pub fn revoke(&self, domid: u16, reference: u32) -> bool {
        self.domain(domid, |domain| match domain.grants.get(&reference) {
            Some(grant) if grant.readers == 0 => domain.grants.remove(&reference).is_some(),
            _ => false,
        })
        .unwrap_or(false)
    }

    /// References of a domain that are mapped, lowest first: what its grant table shows.
    pub fn in_use(&self, domid: u16) -> Vec<u32> {
        let used = |domain: &mut Domain| {
            let grants = domain.grants.iter().filter(|(_, grant)| grant.readers > 0);
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
        let (lists, areas) = Default::default();
        let device = Device { kind, _file: copy, only: None, next_index: 0, lists, areas };
        self.lock().devices.insert(number(file.as_fd()), device);
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn domain<T>(&self, domid: u16, look: impl FnOnce(&mut Domain) -> T) -> Option<T> {
        self.lock().domains.get_mut(&domid).map(look)
    }
}

impl XenOps for FakeXen {
    fn host_page(&self) -> usize {
        self.lock().host_page
    }

    fn is_device(&self, device: XenDevice, fd: BorrowedFd<'_>) -> bool {
        self.lock().devices.get(&number(fd)).is_some_and(|known| known.kind == device)
    }

    fn open(&self, device: XenDevice) -> io::Result<OwnedFd> {
        if !self.lock().can_open {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if self.lock().opens_another {
            return Ok(memfd_create("no xen device", MemfdFlags::CLOEXEC)?);
        }
        self.device(device)
    }

    fn restrict(&self, privcmd: BorrowedFd<'_>, domid: u16) -> io::Result<()> {
        let mut state = self.lock();
        if !state.can_restrict {
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        }
        let device = state.device(privcmd)?;
        match device.only {
            Some(only) if only != domid => Err(invalid()),
            _ => {
                device.only = Some(domid);
                Ok(())
            }
        }
    }

    fn map_frames(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
        errors: &mut [i32],
    ) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.map_frames += 1;
        state.calls.frames += frames.numbers.len() as u64;
        state.calls.unrestricted += u64::from(state.device(privcmd)?.only.is_none());
        state.may_reach(privcmd, frames.domid)?;
        // A mapping of the device has whole pages of the host's.
        let len = (frames.numbers.len() * XEN_PAGE as usize).next_multiple_of(state.host_page);
        if !at.is_multiple_of(state.host_page) || len > area.len() - at {
            return Err(invalid());
        }
        let mut paged_out = false;
        for ((&frame, error), page) in frames.numbers.iter().zip(errors).zip(0..) {
            *error = match state.frame(frames.domid, frame) {
                Ok((file, offset)) => {
                    let at = at + page * XEN_PAGE as usize;
                    area.place(at, file.as_fd(), offset, XEN_PAGE as usize, Protection::ReadWrite)?;
                    0
                }
                Err(number) => -number,
            };
            paged_out |= *error == -libc::ENOENT;
        }
        if paged_out { Err(io::Error::from_raw_os_error(libc::ENOENT)) } else { Ok(()) }
    }

    fn retry_frame(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
    ) -> io::Result<i32> {
        let mut error = [0];
        self.map_frames(privcmd, frames, area, at, &mut error)?;
        Ok(error[0])
    }

    fn max_grants(&self) -> usize {
        self.lock().max_grants
    }

    fn list_grants(&self, gntdev: BorrowedFd<'_>, grants: &[GrantRef]) -> io::Result<u64> {
        let mut state = self.lock();
        state.calls.map_grants += 1;
        if grants.is_empty() || grants.len() > state.max_grants {
            return Err(invalid());
        }
        let device = state.device(gntdev)?;
        let index = device.next_index;
        device.next_index += grants.len() as u64 * XEN_PAGE;
        device.lists.insert(index, List { grants: grants.to_vec(), is_mapped: false });
        Ok(index)
    }

    fn map_grants(
        &self,
        gntdev: BorrowedFd<'_>,
        index: u64,
        count: usize,
        protection: Protection,
    ) -> io::Result<Mapping> {
        let mut state = self.lock();
        let list = state.device(gntdev)?.list(index, count).filter(|list| !list.is_mapped);
        let grants = list.ok_or_else(invalid)?.grants.clone();
        if state.busy > 0 {
            state.busy -= 1;
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let writable = protection == Protection::ReadWrite;
        let area = state.map(&grants, protection)?;
        state.calls.grants += count as u64;
        let device = state.device(gntdev)?;
        device.list(index, count).ok_or_else(invalid)?.is_mapped = true;
        device.areas.insert(index, Area { grants, writable });
        Ok(area)
    }

    fn give_up_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()> {
        let mut state = self.lock();
        let device = state.device(gntdev)?;
        device.list(index, count).ok_or_else(absent)?;
        device.lists.remove(&index);
        Ok(())
    }

    fn unmap_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.unmap_grants += 1;
        let areas = &mut state.device(gntdev)?.areas;
        if areas.get(&index).is_none_or(|area| area.grants.len() != count) {
            return Err(absent());
        }
        if let Some(area) = areas.remove(&index) {
            state.release(&area.grants, area.writable);
        }
        Ok(())
    }

    fn copy_grants(&self, gntdev: BorrowedFd<'_>, pieces: &mut [GrantCopy<'_>]) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.copy_grants += 1;
        state.device(gntdev)?;
        if !state.can_copy {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        for piece in pieces {
            if piece.local.len() + usize::from(piece.offset) > XEN_PAGE as usize {
                return Err(invalid());
            }
            state.calls.pieces += 1;
            piece.status = state.copy(piece)?;
        }
        Ok(())
    }
}

impl Device {
    fn list(&mut self, index: u64, count: usize) -> Option<&mut List> {
        self.lists.get_mut(&index).filter(|list| list.grants.len() == count)
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

    /// Where a frame is, or the error of its page.
    fn frame(&mut self, domid: u16, frame: u64) -> Result<Place, i32> {
        let domain = self.domains.get_mut(&domid).ok_or(libc::ESRCH)?;
        if let Some(times) = domain.paged_out.get_mut(&frame).filter(|times| **times > 0) {
            *times -= 1;
            return Err(libc::ENOENT);
        }
        domain.place(frame).ok_or(libc::EINVAL)
    }

    /// Maps all of the grants or none.
    fn map(&mut self, grants: &[GrantRef], protection: Protection) -> io::Result<Mapping> {
        let writable = protection == Protection::ReadWrite;
        let page = XEN_PAGE as usize;
        let mut area = Mapping::reserved(grants.len() * page)?;
        for (number, grant) in grants.iter().enumerate() {
            let Some((file, offset)) = self.take(*grant, writable) else {
                self.release(&grants[..number], writable);
                return Err(invalid());
            };
            area.place(number * page, file.as_fd(), offset, page, protection)?;
        }
        Ok(area)
    }

    fn take(&mut self, GrantRef { domid, reference }: GrantRef, writable: bool) -> Option<Place> {
        let domain = self.domains.get_mut(&domid)?;
        let grant = domain.grants.get(&reference)?;
        if writable && !grant.writable || grant.readers == MAPPINGS_OF_A_GRANT {
            return None;
        }
        let frame = grant.frame;
        let place = domain.place(frame)?;
        let grant = domain.grants.get_mut(&reference)?;
        grant.readers += 1;
        grant.writers += u32::from(writable);
        Some(place)
    }

    fn release(&mut self, grants: &[GrantRef], writable: bool) {
        for GrantRef { domid, reference } in grants {
            let domain = self.domains.get_mut(domid);
            if let Some(grant) = domain.and_then(|domain| domain.grants.get_mut(reference)) {
                grant.readers -= 1;
                grant.writers -= u32::from(writable);
            }
        }
    }

    fn copy(&mut self, piece: &GrantCopy<'_>) -> io::Result<i16> {
        let GrantRef { domid, reference } = piece.grant;
        let Some(domain) = self.domains.get(&domid) else { return Ok(BAD_DOMAIN) };
        let Some(grant) = domain.grants.get(&reference) else { return Ok(BAD_REFERENCE) };
        if piece.to_guest && !grant.writable {
            return Ok(GENERAL_ERROR);
        }
        let Some((file, page)) = domain.place(grant.frame) else { return Ok(GENERAL_ERROR) };
        let at = page + u64::from(piece.offset);
        let mut bytes: Vec<u8> = piece.local.iter().map(std::cell::Cell::get).collect();
        if piece.to_guest {
            rustix::io::pwrite(&*file, &bytes, at)?;
        } else {
            rustix::io::pread(&*file, &mut bytes, at)?;
            piece.local.iter().zip(&bytes).for_each(|(cell, &byte)| cell.set(byte));
        }
        Ok(0)
    }
}

impl Domain {
    fn place(&self, frame: u64) -> Option<Place> {
        let holds = |ram: &&Ram| frame.checked_sub(ram.first).is_some_and(|n| n < ram.pages);
        let ram = self.ram.iter().find(holds).filter(|_| !self.holes.contains(&frame))?;
        Some((Arc::clone(&ram.file), (frame - ram.first) * XEN_PAGE))
    }
}

/// The number of an open file; 0 is none's.
fn number(fd: BorrowedFd<'_>) -> u64 {
    fstat(fd).map_or(0, |stat| stat.st_ino)
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn absent() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}
