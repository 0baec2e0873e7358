//! The calls to Linux's Xen devices.
#![allow(unsafe_code)] // ioctls with structures of pointers, which nothing in `std` makes.
//!
//! Source: Linux `include/uapi/xen/gntdev.h` and `privcmd.h`. All structures are little-endian
//! here: Linux runs on Xen in no other way.

use std::ffi::c_void;
use std::fs::read_to_string;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::node::device_number;
use super::{Frames, GrantCopy, GrantRef, XEN_PAGE, XenDevice, XenOps};
use crate::sys::fd_kind::fd_kind;
use crate::sys::mmap::{Mapping, Protection};

/// `_IOC(_IOC_NONE, kind, nr, size)`.
const fn ioc(kind: u8, nr: u32, size: u32) -> u32 {
    size << 16 | (kind as u32) << 8 | nr
}

const GNTDEV_MAP_GRANT_REF: u32 = ioc(b'G', 0, 24);
const GNTDEV_UNMAP_GRANT_REF: u32 = ioc(b'G', 1, 16);
const GNTDEV_GRANT_COPY: u32 = ioc(b'G', 8, 16);
const PRIVCMD_MMAPBATCH_V2: u32 = ioc(b'P', 4, 32);
const PRIVCMD_RESTRICT: u32 = ioc(b'P', 6, 2);

/// GRANT_COPY: the source, or the destination, is a grant.
const SOURCE_IS_GRANT: u16 = 1;
const TARGET_IS_GRANT: u16 = 2;

/// `xen_gntdev.limit` when it cannot be read.
const DEFAULT_LIMIT: usize = 65536;

/// Linux's Xen devices.
#[derive(Debug)]
pub struct LinuxXen;

/// A piece of GRANT_COPY, as the kernel has it.
#[repr(C)]
struct CopySegment {
    source: u64,
    target: u64,
    len: u16,
    flags: u16,
    status: i16,
    pad: u16,
}

impl XenOps for LinuxXen {
    fn is_device(&self, device: XenDevice, fd: BorrowedFd<'_>) -> bool {
        // A file system may not answer: it is not asked whether its file is a device.
        if !fd_kind(fd).starts_with("a character device") {
            return false;
        }
        let number = rustix::fs::fstat(fd).ok().and_then(|stat| device_number(&stat));
        number.is_some() && number == device.number(Path::new("/"))
    }

    fn open(&self, device: XenDevice) -> io::Result<OwnedFd> {
        // What stands there may be no device at all.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(rustix::fs::open(device.path(), flags, Mode::empty())?)
    }

    fn restrict(&self, privcmd: BorrowedFd<'_>, domid: u16) -> io::Result<()> {
        ioctl(privcmd, PRIVCMD_RESTRICT, &raw const domid as *mut c_void)
    }

    fn map_frames(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
        errors: &mut [i32],
    ) -> io::Result<()> {
        let len = frames.numbers.len() * XEN_PAGE as usize;
        let len = len.next_multiple_of(rustix::param::page_size());
        area.place(at, privcmd, 0, len, Protection::ReadWrite)?;
        batch(privcmd, frames, area, at, errors)
    }

    fn retry_frame(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
    ) -> io::Result<i32> {
        let mut error = [0];
        batch(privcmd, frames, area, at, &mut error)?;
        Ok(error[0])
    }

    fn max_grants(&self) -> usize {
        limit(Path::new("/"))
    }

    fn list_grants(&self, gntdev: BorrowedFd<'_>, grants: &[GrantRef]) -> io::Result<u64> {
        // u32 count, u32 padding, u64 index, then a domain and a reference for each page.
        let count = u32::try_from(grants.len()).map_err(|_| too_many())?;
        let each = grants.iter().map(|g| u64::from(g.domid) | u64::from(g.reference) << 32);
        let mut words: Vec<u64> = [u64::from(count), 0].into_iter().chain(each).collect();
        ioctl(gntdev, GNTDEV_MAP_GRANT_REF, words.as_mut_ptr().cast())?;
        Ok(words[1])
    }

    fn map_grants(
        &self,
        gntdev: BorrowedFd<'_>,
        index: u64,
        count: usize,
        protection: Protection,
    ) -> io::Result<Mapping> {
        Mapping::of_device(gntdev, index, count * XEN_PAGE as usize, protection)
    }

    fn give_up_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()> {
        // u64 index, u32 count, u32 padding.
        let mut words = [index, u64::from(u32::try_from(count).map_err(|_| too_many())?)];
        ioctl(gntdev, GNTDEV_UNMAP_GRANT_REF, words.as_mut_ptr().cast())
    }

    fn unmap_grants(&self, _: BorrowedFd<'_>, _: u64, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn copy_grants(&self, gntdev: BorrowedFd<'_>, pieces: &mut [GrantCopy<'_>]) -> io::Result<()> {
        let mut segments: Vec<_> = pieces.iter().map(CopySegment::new).collect();
        let count = u32::try_from(segments.len()).map_err(|_| too_many())?;
        // u32 count, u32 padding, the segments.
        let mut words = [u64::from(count), segments.as_mut_ptr() as u64];
        ioctl(gntdev, GNTDEV_GRANT_COPY, words.as_mut_ptr().cast())?;
        for (piece, segment) in pieces.iter_mut().zip(&segments) {
            piece.status = segment.status;
        }
        Ok(())
    }
}

impl CopySegment {
    fn new(piece: &GrantCopy<'_>) -> Self {
        let GrantRef { domid, reference } = piece.grant;
        let grant = u64::from(reference) | u64::from(piece.offset) << 32 | u64::from(domid) << 48;
        let local = piece.local.as_ptr() as u64;
        let (source, target, flags) = if piece.to_guest {
            (local, grant, TARGET_IS_GRANT)
        } else {
            (grant, local, SOURCE_IS_GRANT)
        };
        // A length that is cut here is refused by the kernel or copies less; never more.
        let len = u16::try_from(piece.local.len()).unwrap_or(u16::MAX);
        Self { source, target, len, flags, status: 0, pad: 0 }
    }
}

/// The most references that a call takes on the system under `root`.
fn limit(root: &Path) -> usize {
    let text = read_to_string(root.join("sys/module/xen_gntdev/parameters/limit")).ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_LIMIT)
}

/// MMAPBATCH_V2 on a place that was mapped from the same descriptor.
fn batch(
    privcmd: BorrowedFd<'_>,
    frames: Frames<'_>,
    area: &mut Mapping,
    at: usize,
    errors: &mut [i32],
) -> io::Result<()> {
    let count = frames.numbers.len();
    let end = count.checked_mul(XEN_PAGE as usize).and_then(|len| at.checked_add(len));
    assert!(end.is_some_and(|end| end <= area.len()) && errors.len() == count, "a place outside");
    let address = area.base() as u64 + at as u64;
    let num = u32::try_from(count).map_err(|_| too_many())?;
    // u32 num, u16 domain, u64 address, the frames' numbers, the errors.
    let mut words = [
        u64::from(num) | u64::from(frames.domid) << 32,
        address,
        frames.numbers.as_ptr() as u64,
        errors.as_mut_ptr() as u64,
    ];
    ioctl(privcmd, PRIVCMD_MMAPBATCH_V2, words.as_mut_ptr().cast())
}

/// `argument` points at the request's structure, as the functions above lay it out.
fn ioctl(fd: BorrowedFd<'_>, request: u32, argument: *mut c_void) -> io::Result<()> {
    // SAFETY: only the functions of this file call this, each with a structure of the size that
    // `request` names. The pointers inside describe slices that the caller borrows for the call:
    // those that the kernel writes through are borrowed mutably, or are cells; or an area that the
    // caller owns mutably.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request) as _, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn too_many() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(GNTDEV_MAP_GRANT_REF, 0x18_4700);
        assert_eq!(GNTDEV_UNMAP_GRANT_REF, 0x10_4701);
        assert_eq!(GNTDEV_GRANT_COPY, 0x10_4708);
        assert_eq!(PRIVCMD_MMAPBATCH_V2, 0x20_5004);
        assert_eq!(PRIVCMD_RESTRICT, 0x02_5006);
    }

    #[test]
    fn a_copy_from_the_guest_has_the_grant_as_its_source() {
        assert_eq!(size_of::<CopySegment>(), 24);
        let local = [Cell::new(0_u8), Cell::new(0)];
        let grant = GrantRef { domid: 0x1234, reference: 0x89ab_cdef };
        let mut piece =
            GrantCopy { grant, offset: 0x0ffe, local: &local, to_guest: false, status: 0 };
        let segment = CopySegment::new(&piece);
        assert_eq!((segment.source, segment.flags), (0x1234_0ffe_89ab_cdef, 1));
        assert_eq!((segment.target, segment.len), (local.as_ptr() as u64, 2));
        piece.to_guest = true;
        let segment = CopySegment::new(&piece);
        assert_eq!((segment.target, segment.flags), (0x1234_0ffe_89ab_cdef, 2));
    }

    #[test]
    fn a_call_takes_as_many_references_as_the_driver_was_loaded_for() {
        let root = std::env::temp_dir().join(format!("vhost-user-limit-{}", std::process::id()));
        assert_eq!(limit(&root), 65536, "the driver's own");
        let parameters = root.join("sys/module/xen_gntdev/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        std::fs::write(parameters.join("limit"), "16\n").unwrap();
        assert_eq!(limit(&root), 16);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn no_other_file_is_taken_for_a_device() {
        let xen = LinuxXen;
        for path in ["/dev/null", "/dev/zero", "/proc/self/status", "/"] {
            let file = File::open(path).unwrap();
            assert!(!xen.is_device(XenDevice::Gntdev, file.as_fd()), "{path}");
            assert!(!xen.is_device(XenDevice::Privcmd, file.as_fd()), "{path}");
        }
    }
}
