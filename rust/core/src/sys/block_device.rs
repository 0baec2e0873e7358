//! What the kernel tells of a block device: the sizes of its blocks, and how they are aligned.
#![allow(unsafe_code)] // ioctl takes a pointer to where its answer goes.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{FileType, fstat};

/// `BLKALIGNOFF` of linux/fs.h, which numbers it next to this one.
const BLKALIGNOFF: libc::Ioctl = libc::BLKPBSZGET - 1;

/// The blocks of a block device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBlocks {
    /// A logical block: the device addresses and moves nothing smaller.
    pub logical: u32,
    /// A physical block: the device changes nothing smaller at once.
    pub physical: u32,
    /// Where the first whole physical block starts.
    pub aligned_at: u32,
    /// The smallest transfer that is fast.
    pub min_io: u32,
    /// The fastest transfer; 0 if the device does not say.
    pub opt_io: u32,
}

/// Asks for the blocks of the device that `fd` is open on.
///
/// # Errors
/// ENOTTY if it is no block device; the system's.
pub fn device_blocks(fd: BorrowedFd<'_>) -> io::Result<DeviceBlocks> {
    if FileType::from_raw_mode(fstat(fd)?.st_mode) != FileType::BlockDevice {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    Ok(DeviceBlocks {
        logical: number(fd, libc::BLKSSZGET)?,
        physical: number(fd, libc::BLKPBSZGET)?,
        // -1: its parts are aligned in different ways.
        aligned_at: number(fd, BLKALIGNOFF)?.cast_signed().max(0).cast_unsigned(),
        min_io: number(fd, libc::BLKIOMIN)?,
        opt_io: number(fd, libc::BLKIOOPT)?,
    })
}

/// Asks a block device for one of the numbers above.
fn number(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<c_uint> {
    let mut answer: c_int = 0;
    // SAFETY: each of these requests has a block device store one int, signed or not, through the
    // argument and keep no pointer to it (linux/fs.h, block/ioctl.c); `answer` is such a one and
    // lives to the end of the call. The caller has seen that the file is a block device: to others
    // the numbers may mean something else.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut answer) } {
        0 => Ok(answer.cast_unsigned()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_block_device_has_no_blocks() {
        let file = File::open("/dev/null").unwrap();
        let error = device_blocks(file.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
