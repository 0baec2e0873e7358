//! The calls to the fake's devices.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};

use super::device::Area;
use super::errors::{absent, invalid};
use super::{FakeXen, number};
use crate::sys::mmap::{Mapping, Protection};
use crate::xen::{Frames, GrantCopy, GrantRef, XEN_PAGE, XenDevice, XenOps};

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
            *error = match state.domains.frame(frames.domid, frame) {
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
        Ok(state.device(gntdev)?.add(grants))
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
        let area = state.domains.map(&grants, protection)?;
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
            state.domains.release(&area.grants, area.writable);
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
            piece.status = state.domains.copy(piece)?;
        }
        Ok(())
    }
}
