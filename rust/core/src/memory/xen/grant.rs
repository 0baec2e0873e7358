//! Granted pages, mapped as long as somebody holds them.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::areas::Areas;
use super::retry_budget::RetryBudget;
use crate::address::GuestAddr;
use crate::sys::guard::Loss;
use crate::sys::mmap::{Mapping, Place, Protection};
use crate::sys::received_fd::ReceivedFd;
use crate::xen::{GrantCopy, GrantRef, XEN_PAGE, XenAccess, XenOps};

/// An open grant device, and what is mapped through it.
#[derive(Debug)]
pub(in crate::memory) struct Grants {
    ops: Arc<dyn XenOps>,
    fd: ReceivedFd,
    copy_below: u64,
    limit: usize,
    areas: Areas<GrantMap>,
    loss: OnceLock<Arc<Loss>>,
}

/// Granted pages in one area. They are unmapped with the last reference, or when they are taken
/// back.
pub(in crate::memory) struct GrantMap {
    grants: Arc<Grants>,
    /// `None` only while it is being dropped.
    area: Option<Mapping>,
    index: u64,
    count: usize,
    given_back: AtomicBool,
}

/// Returns references that follow each other, as those of consecutive guest addresses do.
pub(in crate::memory) fn run(
    domid: u16,
    first: u32,
    pages: usize,
) -> impl Iterator<Item = GrantRef> {
    (0..pages).map(move |page| GrantRef { domid, reference: first.wrapping_add(page as u32) })
}

/// Returns the grant reference that an address with bit 63 names.
pub(in crate::memory) fn grant_of(at: GuestAddr) -> u32 {
    // Regions of grants end below bit 44: the reference has 32 bits.
    ((at.0 & !(1 << 63)) / XEN_PAGE) as u32
}

/// Returns whether a page is paged out: the kernel says so of a whole call.
pub(in crate::memory) fn is_paged_out(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

impl Grants {
    /// Takes an open grant device.
    pub(in crate::memory) fn new(access: &XenAccess, fd: ReceivedFd) -> Arc<Self> {
        let XenAccess { ops, copy_below } = access.clone();
        // Whoever loads the driver may change it later: the next region knows.
        let limit = ops.max_grants().max(1);
        let (areas, loss) = (Areas::default(), OnceLock::new());
        Arc::new(Self { ops, fd, copy_below, limit, areas, loss })
    }

    /// Has `loss` told if something is lost of what is mapped from now on; the first call counts.
    pub(in crate::memory) fn watch(&self, loss: &Arc<Loss>) {
        self.loss.get_or_init(|| Arc::clone(loss));
    }

    /// Returns the number of bytes up to which a batch's data is copied.
    pub(in crate::memory) fn copy_below(&self) -> u64 {
        self.copy_below
    }

    /// Maps the pages, in order, in one call; not after the [end](Self::end). Those that are paged
    /// out are waited for.
    pub(in crate::memory) fn map(
        self: &Arc<Self>,
        grants: &[GrantRef],
        protection: Protection,
        budget: &mut RetryBudget,
    ) -> io::Result<Arc<GrantMap>> {
        let (area, index) = self.try_map(grants, protection, budget)?;
        let area = area.lent().inspect_err(|_| {
            let _ = self.ops.unmap_grants(self.fd.as_fd(), index, grants.len());
        })?;
        self.loss.get().inspect(|loss| area.watch(loss));
        self.areas.add(GrantMap {
            grants: Arc::clone(self),
            area: Some(area),
            index,
            count: grants.len(),
            given_back: AtomicBool::new(false),
        })
    }

    fn try_map(
        &self,
        grants: &[GrantRef],
        protection: Protection,
        budget: &mut RetryBudget,
    ) -> io::Result<(Mapping, u64)> {
        loop {
            // Not held during the call, which may be long: what comes too late is not added.
            drop(self.areas.hold()?);
            match self.map_once(grants, protection) {
                Err(error) if is_paged_out(&error) && budget.wait() => {}
                done => return done,
            }
        }
    }

    fn map_once(&self, grants: &[GrantRef], protection: Protection) -> io::Result<(Mapping, u64)> {
        let (fd, count) = (self.fd.as_fd(), grants.len());
        let index = self.ops.list_grants(fd, grants)?;
        let area = self.ops.map_grants(fd, index, count, protection);
        // The list is given up at once, whether or not its pages were mapped: they stay until the
        // area goes. As long as there is the list, a kernel that is not paravirtual keeps them
        // mapped although this process was killed, until the last copy of the descriptor is
        // closed: and that is the front-end's.
        let _ = self.ops.give_up_grants(fd, index, count);
        Ok((area?, index))
    }

    /// Copies pieces in one call. A piece that was not copied has a status that is not 0: none
    /// is after the [end](Self::end). `false`: the call failed, and nothing was copied.
    pub(in crate::memory) fn copy(&self, pieces: &mut [GrantCopy<'_>]) -> bool {
        if pieces.is_empty() {
            return true;
        }
        let held = self.areas.hold();
        let done = held.and_then(|_held| self.ops.copy_grants(self.fd.as_fd(), pieces)).is_ok();
        if !done {
            pieces.iter_mut().for_each(|piece| piece.status = i16::MIN);
        }
        done
    }

    /// Returns the largest number of references in one call.
    pub(in crate::memory) fn limit(&self) -> usize {
        self.limit
    }

    /// From now on nothing is mapped or copied.
    pub(in crate::memory) fn end(&self) {
        self.areas.end();
    }

    /// Returns whether nothing is mapped or copied any more.
    pub(in crate::memory) fn have_ended(&self) -> bool {
        self.areas.have_ended()
    }

    /// Gives back all that is mapped: see [`GrantMap::detach`].
    pub(in crate::memory) fn detach(&self, needed: &[Place]) {
        self.areas.left().iter().for_each(|map| map.detach(needed));
    }
}

impl GrantMap {
    /// Returns the address of the first byte, which is valid while this value lives.
    pub(in crate::memory) fn base(&self) -> *mut u8 {
        self.area.as_ref().map_or(std::ptr::null_mut(), Mapping::base)
    }

    /// Returns the number of bytes that are mapped.
    pub(in crate::memory) fn len(&self) -> usize {
        self.area.as_ref().map_or(0, Mapping::len)
    }

    /// Has `loss` told if something of it is lost; the first call counts.
    pub(in crate::memory) fn watch(&self, loss: &Arc<Loss>) {
        self.area.as_ref().inspect(|area| area.watch(loss));
    }

    /// Gives the pages back. Memory of this process takes their place, with what `needed` names of
    /// them.
    pub(in crate::memory) fn detach(&self, needed: &[Place]) {
        // If the kernel has no memory for that the pages stay, as long as the value does.
        if self.area.as_ref().is_none_or(|area| area.detach(needed).is_ok()) {
            self.give_back();
        }
    }

    /// Does the second half of unmapping, after the area is gone. The kernel does it by itself when
    /// the descriptor is closed, so a failure leaves nothing behind.
    fn give_back(&self) {
        if !self.given_back.swap(true, Ordering::SeqCst) {
            let grants = &self.grants;
            let _ = grants.ops.unmap_grants(grants.fd.as_fd(), self.index, self.count);
        }
    }
}

impl Drop for GrantMap {
    fn drop(&mut self) {
        drop(self.area.take());
        self.give_back();
    }
}

impl fmt::Debug for GrantMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, count, .. } = self;
        f.debug_struct("GrantMap").field("index", index).field("count", count).finish()
    }
}
