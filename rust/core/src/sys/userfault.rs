//! Page faults that another process answers: pages of a file that are missing where it is mapped here
//! come when that process has them, and whoever touches one waits.
//!
//! What is touched is touched by system calls too, as by a `preadv` into guest memory: so the kernel's
//! own faults have to be caught as well, which it lets nobody do without a right to.
//!
//! Linux, userfaultfd(2) and ioctl_userfaultfd(2).
#![allow(unsafe_code)] // ioctls, for which there is no safe wrapper.

use std::ffi::{c_int, c_ulong};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::private_fd::PrivateFd;

const UFFDIO_API: c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: c_ulong = 0x8010_aa02;
/// On the device node: a descriptor for who has rights to the node, if not to the system call.
const USERFAULTFD_IOC_NEW: c_ulong = 0xaa00;
const NODE: &str = "/dev/userfaultfd";

const API: u64 = 0xaa;
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1 << 0;
/// The ioctl by which pages are put into their places.
const CAN_COPY: u64 = 1 << 3;

/// Bytes of a message that the descriptor has for who reads it.
pub const MESSAGE: usize = 32;
/// A message's kind: a page is missing.
const PAGEFAULT: u8 = 0x12;

/// Returns whether the file has all pages of what is mapped here, so that another mapping of them
/// makes none.
pub fn are_here(base: *mut u8, len: usize) -> bool {
    let page = rustix::param::page_size();
    let lead = base.addr() % page;
    let mut found = vec![0_u8; (lead + len).div_ceil(page)];
    let start = base.wrapping_sub(lead).cast();
    // SAFETY: the kernel looks at no byte of the range, whose addresses it checks itself; it stores one
    // for each of its pages, for which there is room.
    let done = unsafe { libc::mincore(start, lead + len, found.as_mut_ptr().cast()) };
    done == 0 && found.iter().all(|page| page & 1 != 0)
}

/// A descriptor of missing pages, and whether they are still to come.
#[derive(Debug)]
pub struct Userfault {
    fd: PrivateFd,
    active: AtomicBool,
}

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

impl Userfault {
    /// Makes a descriptor for missing pages of shared memory, those of hugetlbfs included.
    ///
    /// # Errors
    /// In words: this kernel does not do it, or not for this process.
    pub fn new() -> Result<Self, String> {
        let fd = PrivateFd::make(open)?;
        let mut api = Api { api: API, ..Api::default() };
        ioctl(fd.as_fd(), UFFDIO_API, &raw mut api)
            .map_err(|error| format!("the kernel speaks another userfaultfd: {error}"))?;
        let needed = MISSING_SHMEM | MISSING_HUGETLBFS;
        if api.features & needed != needed {
            return Err("the kernel catches no faults in shared memory".to_owned());
        }
        Ok(Self { fd, active: AtomicBool::new(true) })
    }

    /// Whether pages may still be missing.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Notes that no page is missing any more.
    pub fn finish(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// Has accesses to the missing pages of a mapping wait until they come.
    ///
    /// # Errors
    /// It is not of shared memory.
    pub(super) fn register(&self, base: *mut u8, len: usize) -> io::Result<()> {
        let mut register = Register { range: range(base, len), mode: MODE_MISSING, ioctls: 0 };
        ioctl(self.fd.as_fd(), UFFDIO_REGISTER, &raw mut register)?;
        if register.ioctls & CAN_COPY == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }

    /// Has nothing wait there any more; whoever does goes on.
    pub(super) fn unregister(&self, base: *mut u8, len: usize) -> io::Result<()> {
        let mut range = range(base, len);
        ioctl(self.fd.as_fd(), UFFDIO_UNREGISTER, &raw mut range)
    }

    /// Has whoever waits there look again, whatever is mapped there by now.
    pub(super) fn wake(&self, base: *mut u8, len: usize) {
        let _ = wake(self.fd.as_fd(), base.addr() as u64, len as u64);
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For the other end: the address whose page is missing, out of a message; `None` if it says something
/// else.
pub fn missing_page(message: &[u8; MESSAGE]) -> Option<u64> {
    let address = message.iter().skip(16).take(8).rev();
    (message[0] == PAGEFAULT).then(|| address.fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

/// For the other end: has whoever waits for a page in these `len` bytes look again.
///
/// # Errors
/// Those are no whole pages, or the descriptor is none of its kind.
pub fn wake(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let mut range = Range { start, len };
    ioctl(fd, UFFDIO_WAKE, &raw mut range)
}

fn range(base: *mut u8, len: usize) -> Range {
    Range { start: base.expose_provenance() as u64, len: len as u64 }
}

/// Opens a descriptor that hears the kernel's own faults too.
fn open() -> Result<OwnedFd, String> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: the descriptor alone changes no memory; what is done with it is done below.
    match unsafe { userfaultfd(flags) } {
        Ok(fd) => Ok(fd),
        Err(Errno::NOSYS) => Err("the kernel has no userfaultfd".to_owned()),
        Err(error) => of_node(flags).map_err(|of_node| {
            format!(
                "the kernel catches page faults for privileged processes only ({error}), and \
                 {NODE} is not open to this one ({of_node}): the capability CAP_SYS_PTRACE, rights \
                 on that node or the setting vm.unprivileged_userfaultfd=1 would do"
            )
        }),
    }
}

fn of_node(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    let node = OpenOptions::new().read(true).write(true).open(NODE)?;
    // SAFETY: the ioctl takes flags by value, and returns a descriptor or an error.
    let fd =
        unsafe { libc::ioctl(node.as_raw_fd(), USERFAULTFD_IOC_NEW, c_ulong::from(flags.bits())) };
    // SAFETY: a descriptor that is not negative was just made, and is nobody else's.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// One of the calls above, whose argument is of the type that it wants.
fn ioctl<T>(fd: BorrowedFd<'_>, request: c_ulong, argument: *mut T) -> io::Result<()> {
    // SAFETY: callers pass the structure that the request names, alive for the call; what the call
    // does to mapped memory is to have accesses to it wait, or go on.
    let result: c_int = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_missing_page_has_its_address_at_byte_16() {
        let mut message = [0; MESSAGE];
        message[0] = 0x12;
        message[16..24].copy_from_slice(&0x7f12_3456_7000_u64.to_ne_bytes());
        assert_eq!(missing_page(&message), Some(0x7f12_3456_7000));
        message[0] = 0x13;
        assert_eq!(missing_page(&message), None);
    }
}
