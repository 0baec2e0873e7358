//! Domains: memory, and which pages of it are granted and mapped.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::errors::invalid;
use crate::sys::mmap::{Mapping, Protection};
use crate::xen::{GrantCopy, GrantRef, XEN_PAGE};

/// Mappings of one reference that a PV domain can have at the same time.
const MAPPINGS_OF_A_GRANT: u32 = 64;

/// Hypervisor statuses: general error, bad domain, bad reference.
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const BAD_REFERENCE: i16 = -3;

/// All domains, by their ids.
#[derive(Debug, Default)]
pub(super) struct Domains(pub(super) HashMap<u16, Domain>);

/// A guest.
#[derive(Debug, Default)]
pub(super) struct Domain {
    pub(super) ram: Vec<Ram>,
    pub(super) holes: HashSet<u64>,
    /// How many more times a frame is found paged out.
    pub(super) paged_out: HashMap<u64, u32>,
    pub(super) grants: HashMap<u32, Grant>,
}

/// Frames that are the pages of a file.
#[derive(Debug)]
pub(super) struct Ram {
    pub(super) first: u64,
    pub(super) pages: u64,
    pub(super) file: Arc<OwnedFd>,
}

/// A frame that is granted, and how often it is mapped.
#[derive(Debug)]
pub(super) struct Grant {
    frame: u64,
    writable: bool,
    readers: u32,
    writers: u32,
}

impl Grant {
    pub(super) fn new(frame: u64, writable: bool) -> Self {
        Self { frame, writable, readers: 0, writers: 0 }
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.readers > 0
    }
}

/// A page of a file.
pub(super) type Place = (Arc<OwnedFd>, u64);

impl Domains {
    /// Where a frame is, or the error of its page.
    pub(super) fn frame(&mut self, domid: u16, frame: u64) -> Result<Place, i32> {
        let domain = self.0.get_mut(&domid).ok_or(libc::ESRCH)?;
        if let Some(times) = domain.paged_out.get_mut(&frame).filter(|times| **times > 0) {
            *times -= 1;
            return Err(libc::ENOENT);
        }
        domain.place(frame).ok_or(libc::EINVAL)
    }

    /// Maps all of the grants or none.
    pub(super) fn map(
        &mut self,
        grants: &[GrantRef],
        protection: Protection,
    ) -> io::Result<Mapping> {
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
        let domain = self.0.get_mut(&domid)?;
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

    pub(super) fn release(&mut self, grants: &[GrantRef], writable: bool) {
        for GrantRef { domid, reference } in grants {
            let domain = self.0.get_mut(domid);
            if let Some(grant) = domain.and_then(|domain| domain.grants.get_mut(reference)) {
                grant.readers -= 1;
                grant.writers -= u32::from(writable);
            }
        }
    }

    pub(super) fn copy(&mut self, piece: &GrantCopy<'_>) -> io::Result<i16> {
        let GrantRef { domid, reference } = piece.grant;
        let Some(domain) = self.0.get(&domid) else { return Ok(BAD_DOMAIN) };
        let Some(grant) = domain.grants.get(&reference) else { return Ok(BAD_REFERENCE) };
        if piece.to_guest && !grant.writable {
            return Ok(GENERAL_ERROR);
        }
        let Some((file, page)) = domain.place(grant.frame) else { return Ok(GENERAL_ERROR) };
        let at = page + u64::from(piece.offset);
        let mut bytes: Vec<u8> = piece.local.iter().map(Cell::get).collect();
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
