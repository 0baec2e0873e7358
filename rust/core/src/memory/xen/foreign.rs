//! A domain's memory by foreign mapping.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use super::areas::Areas;
use super::retry_budget::RetryBudget;
use crate::address::GuestAddr;
use crate::sys::guard::Loss;
use crate::sys::mmap::{Mapping, Place};
use crate::sys::received_fd::ReceivedFd;
use crate::xen::{Frames, XEN_PAGE, XenOps};

/// The most pages of one call: 256 MiB of memory, with less than a megabyte of numbers and results.
const PAGES_PER_CALL: usize = 1 << 16;

/// An open device for foreign mapping, and the domain that it is for.
#[derive(Debug)]
pub(in crate::memory) struct Foreign {
    ops: Arc<dyn XenOps>,
    fd: ReceivedFd,
    domid: u16,
    areas: Areas<Mapping>,
    loss: OnceLock<Arc<Loss>>,
}

/// A page that cannot be mapped.
#[derive(Debug)]
pub struct NoPage {
    at: GuestAddr,
    domid: u16,
    error: io::Error,
}

impl NoPage {
    /// Returns the page's first address.
    pub(in crate::memory) fn at(&self) -> GuestAddr {
        self.at
    }
}

impl Foreign {
    /// Takes an open device, which reaches no domain but this one from now on, if the kernel can
    /// do that.
    ///
    /// # Errors
    /// It cannot be restricted: above all since it is, to another domain.
    pub(in crate::memory) fn new(
        ops: Arc<dyn XenOps>,
        fd: ReceivedFd,
        domid: u16,
    ) -> io::Result<Self> {
        match ops.restrict(fd.as_fd(), domid) {
            // A kernel before 4.14 knows no restriction.
            Err(error) if !is_unknown(&error) => Err(error),
            _ => Ok(Self { ops, fd, domid, areas: Areas::default(), loss: OnceLock::new() }),
        }
    }

    /// Has `loss` told if something is lost of what is mapped from now on; the first call counts.
    pub(in crate::memory) fn watch(&self, loss: &Arc<Loss>) {
        self.loss.get_or_init(|| Arc::clone(loss));
    }

    /// Maps all pages that `len` bytes from `at` on lie in. The area starts with the page of the
    /// first byte. Nothing is mapped after the [end](Self::end).
    pub(in crate::memory) fn map(&self, at: GuestAddr, len: u64) -> Result<Arc<Mapping>, NoPage> {
        let first = at.0 / XEN_PAGE;
        let pages = usize::try_from((at.0 % XEN_PAGE + len).div_ceil(XEN_PAGE));
        let pages = pages.map_err(|_| self.failed(first, io::ErrorKind::OutOfMemory.into()))?;
        self.map_pages(pages, |page| first + page as u64, &mut RetryBudget::default())
    }

    /// Maps so many pages in one area, in order, each of the frame that `number` says. Those that
    /// are paged out are waited for. Nothing is mapped after the [end](Self::end).
    pub(in crate::memory) fn map_pages(
        &self,
        pages: usize,
        number: impl Fn(usize) -> u64,
        budget: &mut RetryBudget,
    ) -> Result<Arc<Mapping>, NoPage> {
        let first = number(0);
        let no_room = || self.failed(first, io::ErrorKind::OutOfMemory.into());
        let bytes = pages.checked_mul(XEN_PAGE as usize).ok_or_else(no_room)?;
        let bytes = bytes.next_multiple_of(self.ops.host_page());
        let mut area = Mapping::reserved(bytes).map_err(|error| self.failed(first, error))?;
        let mut done = 0;
        while done < pages {
            // Not held during the calls, which may be many: what comes too late is not added.
            drop(self.areas.hold().map_err(|error| self.failed(first, error))?);
            let count = PAGES_PER_CALL.min(pages - done);
            let numbers: Vec<u64> = (done..done + count).map(&number).collect();
            self.map_some(&numbers, &mut area, done * XEN_PAGE as usize, budget)?;
            done += count;
        }
        // A page that was mapped once stays: the hypervisor counts the mapping and frees no page
        // that has one, not even when the domain ends (Xen 4.17 was seen to do so). What is left is
        // memory that breaks, and that must not end this process either.
        let area = area.lent().map_err(|error| self.failed(first, error))?;
        self.loss.get().inspect(|loss| area.watch(loss));
        self.areas.add(area).map_err(|error| self.failed(first, error))
    }

    /// From now on nothing is mapped.
    pub(in crate::memory) fn end(&self) {
        self.areas.end();
    }

    /// Returns whether nothing is mapped any more.
    pub(in crate::memory) fn have_ended(&self) -> bool {
        self.areas.have_ended()
    }

    /// Gives back all that is mapped. Memory of this process takes its place, with what `needed`
    /// names of it.
    pub(in crate::memory) fn detach(&self, needed: &[Place]) {
        // If the kernel has no memory for that the pages stay, as long as somebody has them.
        self.areas.left().iter().for_each(|area| drop(area.detach(needed)));
    }

    /// Makes one call, and looks at each page's result. The kernel reports success although pages
    /// failed, and a page that failed is a fault, or worse, wrong data, for who touches it.
    fn map_some(
        &self,
        numbers: &[u64],
        area: &mut Mapping,
        at: usize,
        budget: &mut RetryBudget,
    ) -> Result<(), NoPage> {
        let mut errors = vec![0; numbers.len()];
        let frames = Frames { domid: self.domid, numbers };
        match self.ops.map_frames(self.fd.as_fd(), frames, area, at, &mut errors) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                return Err(self.failed(numbers[0], error));
            }
            _ => {}
        }
        for ((page, &number), error) in numbers.iter().enumerate().zip(errors) {
            let at = at + page * XEN_PAGE as usize;
            match error {
                0 => {}
                error if error == -libc::ENOENT => self.await_page(number, area, at, budget)?,
                error => return Err(self.failed(number, io::Error::from_raw_os_error(-error))),
            }
        }
        Ok(())
    }

    /// Waits for a page that is paged out. All of an area come back at the same time: those that
    /// are looked at after the first cost a call each, and seldom a pause.
    fn await_page(
        &self,
        number: u64,
        area: &mut Mapping,
        at: usize,
        budget: &mut RetryBudget,
    ) -> Result<(), NoPage> {
        let frames = Frames { domid: self.domid, numbers: &[number] };
        loop {
            let error = match self.ops.retry_frame(self.fd.as_fd(), frames, area, at) {
                Ok(0) => return Ok(()),
                Ok(error) => -error,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            if error != libc::ENOENT || !budget.wait() {
                return Err(self.failed(number, io::Error::from_raw_os_error(error)));
            }
        }
    }

    fn failed(&self, number: u64, error: io::Error) -> NoPage {
        NoPage { at: GuestAddr(number.saturating_mul(XEN_PAGE)), domid: self.domid, error }
    }
}

/// Returns whether the kernel does not know the call.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::ENOSYS))
}

impl fmt::Display for NoPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, domid, error } = self;
        match error.raw_os_error() {
            Some(libc::ESRCH) => write!(f, "there is no domain {domid}"),
            Some(libc::ENOENT) => write!(f, "the page at {at} of domain {domid} stays paged out"),
            Some(libc::EPERM) => write!(
                f,
                "the page at {at} of domain {domid} may not be mapped: the descriptor is \
                 restricted to another domain, or there is no such page"
            ),
            Some(libc::EINVAL) => write!(f, "domain {domid} has no page at {at}"),
            _ => write!(f, "the page at {at} of domain {domid} cannot be mapped: {error}"),
        }
    }
}

impl std::error::Error for NoPage {}
