//! What the hypervisor's devices do, and nothing of when to use them.
//!
//! A domain's memory is reached in three ways. By *foreign mapping* (`/dev/xen/privcmd`) whoever
//! controls the domain maps its frames. By *grant mapping* (`/dev/xen/gntdev`) a domain is mapped
//! that has granted single pages, named by references. And a granted page can be *copied* by the
//! hypervisor without being mapped at all, which is cheaper for little data.
//!
//! ```text
//!            one call                        results
//! foreign    an area, a frame for each page  one for each page, and success although some failed
//! grants     references                      all pages in one new area, or none
//! copy       pieces of granted pages         one for each piece
//! ```
//!
//! [`LinuxXen`] makes the system calls; [`FakeXen`] does on memory files what the kernel was seen
//! to do, so that everything above runs in tests without a hypervisor.

mod fake;
mod linux;
mod node;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::sys::mmap::{Mapping, Protection};
pub use fake::{FakeXen, XenCalls};
pub use linux::LinuxXen;

/// Bytes of a page to the hypervisor, whatever the host's own are.
pub const XEN_PAGE: u64 = 4096;

/// One of the hypervisor's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XenDevice {
    /// `/dev/xen/privcmd`: foreign mapping.
    Privcmd,
    /// `/dev/xen/gntdev`: grants.
    Gntdev,
}

impl XenDevice {
    /// Where it usually is.
    pub fn path(self) -> &'static str {
        match self {
            Self::Privcmd => "/dev/xen/privcmd",
            Self::Gntdev => "/dev/xen/gntdev",
        }
    }
}

/// A granted page: who grants it, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantRef {
    /// The domain.
    pub domid: u16,
    /// The reference.
    pub reference: u32,
}

/// Bytes of a batch's data up to which granted pages are copied rather than mapped, by default.
/// On Xen 4.17 under software emulation a page cost 11 µs copied, and 19 µs mapped and unmapped,
/// 128 of them in a call; one page alone 112 and 492 µs; at 256 pages both came to about the same.
pub const COPY_BELOW: u64 = 512 << 10;

/// The hypervisor's devices, and how to use them.
#[derive(Clone, Debug)]
pub struct XenAccess {
    /// The devices.
    pub ops: Arc<dyn XenOps>,
    /// Bytes of a batch's data up to which granted pages are copied rather than mapped.
    pub copy_below: u64,
}

impl XenAccess {
    /// Linux's devices, used as measured best.
    pub fn linux() -> Self {
        Self { ops: Arc::new(LinuxXen), copy_below: COPY_BELOW }
    }
}

/// Frames to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    /// Whose.
    pub domid: u16,
    /// Which, one for each page of the area.
    pub numbers: &'a [u64],
}

/// A piece of a granted page, to be copied.
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The page.
    pub grant: GrantRef,
    /// First byte in the page; the piece ends in the same page.
    pub offset: u16,
    /// The memory here, as long as the piece.
    pub local: &'a [Cell<u8>],
    /// To the granted page, or from it.
    pub to_guest: bool,
    /// The hypervisor's answer: 0 is good.
    pub status: i16,
}

/// The hypervisor's devices. Calls are as the kernel makes them: no retries, no checks beyond its
/// own.
pub trait XenOps: fmt::Debug + Send + Sync + 'static {
    /// Bytes of a page of this host.
    fn host_page(&self) -> usize {
        rustix::param::page_size()
    }

    /// Whether `fd` is an open `device`.
    fn is_device(&self, device: XenDevice, fd: BorrowedFd<'_>) -> bool;

    /// Opens what stands where a device usually is: see [`is_device`](Self::is_device).
    fn open(&self, device: XenDevice) -> io::Result<OwnedFd>;

    /// From now on `privcmd`, and whoever shares its open file, reaches no domain but `domid`.
    fn restrict(&self, privcmd: BorrowedFd<'_>, domid: u16) -> io::Result<()>;

    /// Maps `frames` at `at` of `area`, which they must leave inside. `errors` gets a result for
    /// each page: 0, or an error number, negative. A page with an error must not be touched.
    fn map_frames(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
        errors: &mut [i32],
    ) -> io::Result<()>;

    /// Tries a page again whose error was -ENOENT: `at` is its place in the area.
    fn retry_frame(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
    ) -> io::Result<i32>;

    /// Most references that one call takes, as it is now.
    fn max_grants(&self) -> usize;

    /// Lists granted pages that are to be mapped; returns the list's index in the open file, where
    /// it stays until it is given up. Nobody looks yet whether the pages are granted.
    fn list_grants(&self, gntdev: BorrowedFd<'_>, grants: &[GrantRef]) -> io::Result<u64>;

    /// Maps the pages of a list, all `count` of them, in an area of their own. EAGAIN: a page is
    /// paged out, try again.
    fn map_grants(
        &self,
        gntdev: BorrowedFd<'_>,
        index: u64,
        count: usize,
        protection: Protection,
    ) -> io::Result<Mapping>;

    /// Gives a list up. What is mapped by it stays until the area is unmapped.
    fn give_up_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()>;

    /// The area that was mapped by a list was unmapped. A kernel has seen it.
    fn unmap_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()>;

    /// Copies pieces. Success says nothing of a single piece: each has its status.
    fn copy_grants(&self, gntdev: BorrowedFd<'_>, pieces: &mut [GrantCopy<'_>]) -> io::Result<()>;
}
