//! Why a region cannot be mapped.

use std::fmt;

use super::xen::foreign::NoPage;
use crate::xen::{GrantRef, XEN_PAGE, XenDevice};

/// Why a region cannot be mapped.
#[derive(Debug)]
pub enum RegionError {
    /// The descriptor is not a regular file, but this, which cannot be memory.
    NotAFile(String),
    /// The file ends before the region does.
    FileTooShort {
        /// The number of bytes that the file has.
        file: u64,
        /// The number of bytes that offset and size ask for.
        needed: u128,
    },
    /// The region is larger than any of its kind that is taken.
    TooLarge {
        /// The number of bytes of the region.
        size: u64,
        /// The number of bytes of the largest.
        most: u64,
    },
    /// With the region more would be mapped than is allowed.
    TooMuch {
        /// The number of bytes of the region, in whole pages.
        bytes: u64,
        /// The number of bytes that are mapped already.
        mapped: u64,
        /// The number of bytes that may be mapped.
        most: u64,
        /// The one that the limit is for.
        whose: Whose,
    },
    /// A dirty log does not start at a page of its file.
    NotAPage {
        /// Where it starts.
        offset: u64,
        /// The number of bytes of a page.
        page: u64,
    },
    /// The file lies on this file system, which may stop to answer.
    FileSystem(String),
    /// Its descriptor is this, not the device that it should be, and this process cannot open that.
    NoDevice(XenDevice, String, std::io::Error),
    /// Its descriptor is the first, not the device that it should be, and where this process looks
    /// for that stands the second.
    WrongDevice(XenDevice, String, String),
    /// Its descriptor cannot be restricted to this domain.
    NotRestricted(u16, std::io::Error),
    /// A domain's page cannot be mapped.
    Foreign(NoPage),
    /// Granted pages cannot be mapped: so many from this reference on.
    Grants(GrantRef, usize, std::io::Error),
    /// Granted pages are mapped as pages of 4 KiB, and this host's have so many bytes.
    HostPages(usize),
    /// The system refused to do this.
    System(&'static str, std::io::Error),
}

/// Who has more mapped than is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// One front-end has.
    Session,
    /// All front-ends of the process together have.
    Process,
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAFile(kind) => write!(f, "its descriptor is {kind}, not a regular file"),
            Self::FileTooShort { file, needed } => {
                write!(f, "its file has {file:#x} bytes, offset and size ask for {needed:#x}")
            }
            Self::NotAPage { offset, page } => {
                write!(f, "its offset {offset:#x} is no multiple of a page ({page:#x} bytes)")
            }
            Self::TooLarge { size, most } => {
                write!(f, "{size:#x} bytes are more than the {most:#x} that a region may have")
            }
            Self::TooMuch { bytes, mapped, most, whose } => {
                let whose = match whose {
                    Whose::Session => "this front-end",
                    Whose::Process => "all front-ends of this process",
                };
                write!(
                    f,
                    "its {bytes:#x} bytes and the {mapped:#x} that {whose} already mapped, those of \
                     former tables that are still in use among them, are more than the limit of \
                     {most:#x}"
                )
            }
            Self::FileSystem(name) => write!(
                f,
                "its file lies on {name}, and a file system that stops to answer hangs whoever \
                 touches the memory: share a memory file (memfd, /dev/shm, hugetlbfs) or a file of \
                 a local disk, or allow it with any_memory_file=True (--any-memory-file)"
            ),
            Self::NoDevice(device, passed, error) => {
                let name = device.path();
                write!(f, "its descriptor is {passed}, not {name}, which cannot be opened here: ")?;
                error.fmt(f)
            }
            Self::WrongDevice(device, passed, own) => {
                let name = device.path();
                write!(f, "its descriptor is {passed}, not {name}, which is {own} here")
            }
            Self::NotRestricted(domid, error) if error.raw_os_error() == Some(libc::EINVAL) => {
                write!(f, "its descriptor is restricted to another domain than {domid}")
            }
            Self::NotRestricted(domid, error) => {
                write!(f, "its descriptor cannot be restricted to domain {domid}: {error}")
            }
            Self::Foreign(error) => error.fmt(f),
            Self::Grants(first, pages, error) => not_granted(f, *first, *pages, error),
            Self::HostPages(bytes) => {
                write!(
                    f,
                    "grants need a host with pages of {XEN_PAGE} bytes, and here they have {bytes}"
                )
            }
            Self::System(what, error) => write!(f, "this process cannot {what}: {error}"),
        }
    }
}

/// Writes what the kernel's error means that came for `pages` grants from `first` on.
fn not_granted(
    f: &mut fmt::Formatter<'_>,
    first: GrantRef,
    pages: usize,
    error: &std::io::Error,
) -> fmt::Result {
    let GrantRef { domid, reference } = first;
    let what = format!("the {pages} pages from reference {reference} on");
    match error.raw_os_error() {
        Some(libc::EINVAL) => write!(
            f,
            "domain {domid} does not grant {what} (or they are mapped too often): {error}"
        ),
        Some(libc::EAGAIN) => write!(f, "{what} of domain {domid} stay paged out"),
        _ => write!(f, "{what} of domain {domid} cannot be mapped: {error}"),
    }
}

impl std::error::Error for RegionError {}
