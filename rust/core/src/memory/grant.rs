//! Granted pages, mapped as long as somebody holds them.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::loans::Loans;
use super::patience::Patience;
use crate::sys::guard::Loss;
use crate::sys::mmap::{Mapping, Place, Protection};
use crate::xen::{GrantCopy, GrantRef, XenAccess, XenOps};

/// An open grant device, and what is mapped through it.
#[derive(Debug)]
pub(super) struct Grants {
    ops: Arc<dyn XenOps>,
    fd: OwnedFd,
    copy_below: u64,
    limit: usize,
    loans: Loans<GrantMap>,
    loss: OnceLock<Arc<Loss>>,
}

/// Granted pages in one area. Unmapped with the last reference, or when they are taken back.
pub(super) struct GrantMap {
    grants: Arc<Grants>,
    /// `None` only while it is being dropped.
    area: Option<Mapping>,
    index: u64,
    count: usize,
    given_back: AtomicBool,
}

/// References that follow each other: what a run of grant addresses is.
pub(super) fn run(domid: u16, first: u32, pages: usize) -> impl Iterator<Item = GrantRef> {
    (0..pages).map(move |page| GrantRef { domid, reference: first.wrapping_add(page as u32) })
}

/// Whether a page is paged out: the kernel says so of a whole call.
pub(super) fn is_paged_out(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

impl Grants {
    /// Takes an open grant device.
    pub(super) fn new(access: &XenAccess, fd: OwnedFd) -> Arc<Self> {
        let XenAccess { ops, copy_below } = access.clone();
        // Whoever loads the driver may change it later: the next region knows.
        let limit = ops.max_grants().max(1);
        let (loans, loss) = (Loans::default(), OnceLock::new());
        Arc::new(Self { ops, fd, copy_below, limit, loans, loss })
    }

    /// Has `loss` told if something is lost of what is mapped from now on; the first call counts.
    pub(super) fn watch(&self, loss: &Arc<Loss>) {
        self.loss.get_or_init(|| Arc::clone(loss));
    }

    /// Bytes up to which a batch's data is copied.
    pub(super) fn copy_below(&self) -> u64 {
        self.copy_below
    }

    /// Maps the pages, in order, in one call; not after the [end](Self::end). Those that are paged
    /// out are waited for.
    pub(super) fn map(
        self: &Arc<Self>,
        grants: &[GrantRef],
        protection: Protection,
        patience: &mut Patience,
    ) -> io::Result<Arc<GrantMap>> {
        let (area, index) = self.try_map(grants, protection, patience)?;
        let area = area.lent().inspect_err(|_| {
            let _ = self.ops.unmap_grants(self.fd.as_fd(), index, grants.len());
        })?;
        self.loss.get().inspect(|loss| area.watch(loss));
        self.loans.add(GrantMap {
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
        patience: &mut Patience,
    ) -> io::Result<(Mapping, u64)> {
        loop {
            // Not held during the call, which may be long: what comes too late is not added.
            drop(self.loans.hold()?);
            match self.map_once(grants, protection) {
                Err(error) if is_paged_out(&error) && patience.wait() => {}
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
    pub(super) fn copy(&self, pieces: &mut [GrantCopy<'_>]) -> bool {
        if pieces.is_empty() {
            return true;
        }
        let held = self.loans.hold();
        let done = held.and_then(|_held| self.ops.copy_grants(self.fd.as_fd(), pieces)).is_ok();
        if !done {
            pieces.iter_mut().for_each(|piece| piece.status = i16::MIN);
        }
        done
    }

    /// Most references in one call.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// From now on nothing is mapped or copied.
    pub(super) fn end(&self) {
        self.loans.end();
    }

    /// Whether nothing is mapped or copied any more.
    pub(super) fn have_ended(&self) -> bool {
        self.loans.have_ended()
    }

    /// Gives back all that is mapped: see [`GrantMap::detach`].
    pub(super) fn detach(&self, needed: &[Place]) {
        self.loans.left().iter().for_each(|map| map.detach(needed));
    }
}

impl GrantMap {
    /// The first byte. Valid while this value lives.
    pub(super) fn base(&self) -> *mut u8 {
        self.area.as_ref().map_or(std::ptr::null_mut(), Mapping::base)
    }

    /// Bytes mapped.
    pub(super) fn len(&self) -> usize {
        self.area.as_ref().map_or(0, Mapping::len)
    }

    /// Has `loss` told if something of it is lost; the first call counts.
    pub(super) fn watch(&self, loss: &Arc<Loss>) {
        self.area.as_ref().inspect(|area| area.watch(loss));
    }

    /// Gives the pages back. Memory of this process takes their place, with what `needed` names of
    /// them.
    pub(super) fn detach(&self, needed: &[Place]) {
        // If the kernel has no memory for that the pages stay, as long as the value does.
        if self.area.as_ref().is_none_or(|area| area.detach(needed).is_ok()) {
            self.give_back();
        }
    }

    /// The second half of unmapping, after the area is gone. The kernel does it by itself when
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
