//! Memory whose pages come later: what a front-end says of it, and how it hears which are missed.
//!
//! Source: QEMU "Vhost-user Protocol", "Postcopy".

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::{Errno, read};

use super::client::{Client, copy};
use super::error::{FrontendError, Result};
use super::memory::{GuestMemory, Region};
use crate::address::GuestAddr;
use crate::error::HostError;
use crate::sys::interrupt::wait_for;
use crate::sys::userfault::{MESSAGE, missing_page, wake};
use crate::wire::FrontendMessage as M;
use crate::wire::payload::{self, MemoryTable, SingleRegion};
use crate::wire::{Payload, ProtocolFeatures, RegionLayout};

/// Bytes of what is asked for and brought at once.
pub const PAGE: u64 = 4096;

/// The pages of guest memory that a back-end misses.
#[derive(Debug)]
pub struct MissingPages {
    fd: OwnedFd,
    /// Where each region is mapped in the back-end, how long it is, and where the guest sees it.
    regions: Vec<(u64, u64, GuestAddr)>,
}

impl Client {
    /// POSTCOPY_ADVISE: how the back-end's missing pages are heard of.
    pub fn postcopy_advise(&mut self) -> Result<MissingPages> {
        let message = M::PostcopyAdvise;
        let reply = self.ask(message, Vec::new())?;
        match reply.fds.first() {
            Some(fd) if reply.payload.is_empty() => {
                Ok(MissingPages { fd: copy(fd.as_fd())?, regions: Vec::new() })
            }
            Some(_) => {
                let why = format!("{} bytes with the descriptor", reply.payload.len());
                Err(FrontendError::BadReply { message: message.name(), why })
            }
            None => Err(FrontendError::Refused { message: message.name(), code: 1 }),
        }
    }

    /// POSTCOPY_LISTEN: memory that is told from now on may lack pages.
    pub fn postcopy_listen(&mut self) -> Result<()> {
        self.tell(M::PostcopyListen, Vec::new(), Vec::new())
    }

    /// Tells of memory that lacks pages, and that they are answered for from now on by `pages`: region
    /// by region if CONFIGURE_MEM_SLOTS was accepted, else in one table.
    pub fn set_missing_memory(
        &mut self,
        memory: &GuestMemory,
        pages: &mut MissingPages,
    ) -> Result<()> {
        self.tell_missing_memory(memory, pages)?;
        self.acknowledge_memory()
    }

    /// The first half of that: the back-end may not touch the memory yet.
    pub fn tell_missing_memory(
        &mut self,
        memory: &GuestMemory,
        pages: &mut MissingPages,
    ) -> Result<()> {
        let regions = memory.regions();
        if self.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            for region in regions {
                let payload = SingleRegion(region.description()).to_bytes(RegionLayout::Plain);
                let fds = vec![copy(region.as_fd())?];
                let reply = self.ask_with(M::AddMemReg, payload, fds)?;
                let there = SingleRegion::from_bytes(&reply.payload, RegionLayout::Plain);
                let SingleRegion(there) =
                    there.map_err(|e| bad_reply(M::AddMemReg, e.to_string()))?;
                pages.add(M::AddMemReg, region, there)?;
            }
            return Ok(());
        }
        let table = MemoryTable { regions: regions.iter().map(Region::description).collect() };
        let fds = regions.iter().map(|region| copy(region.as_fd())).collect::<Result<_>>()?;
        let reply = self.ask_with(M::SetMemTable, table.to_bytes(RegionLayout::Plain), fds)?;
        let there = MemoryTable::from_bytes(&reply.payload, RegionLayout::Plain);
        let there = there.map_err(|e| bad_reply(M::SetMemTable, e.to_string()))?;
        if there.regions.len() != regions.len() {
            return Err(bad_reply(M::SetMemTable, format!("{} regions", there.regions.len())));
        }
        let mut pairs = regions.iter().zip(there.regions);
        pairs.try_for_each(|(region, there)| pages.add(M::SetMemTable, region, there))
    }

    /// The second half: pages that are missing are answered for from now on.
    pub fn acknowledge_memory(&mut self) -> Result<()> {
        let slots = self.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
        let message = if slots { M::AddMemReg } else { M::SetMemTable };
        self.send(message, 0_u64.to_bytes(), Vec::new(), false)
    }

    /// POSTCOPY_END: all pages are there.
    pub fn postcopy_end(&mut self) -> Result<()> {
        match self.ask_for(M::PostcopyEnd, Vec::new())? {
            0_u64 => Ok(()),
            code => Err(FrontendError::Refused { message: M::PostcopyEnd.name(), code }),
        }
    }
}

impl MissingPages {
    /// Waits for a page that somebody misses: its guest address. `None`: nobody did in time.
    pub fn next(&self, timeout: Duration) -> Result<Option<GuestAddr>> {
        let until = Instant::now() + timeout;
        loop {
            let mut message = [0; MESSAGE];
            match read(&self.fd, &mut message) {
                Ok(MESSAGE) => {
                    let Some(address) = missing_page(&message) else { continue };
                    return self.guest(address & !(PAGE - 1)).map(Some);
                }
                Ok(_) => return Err(bad_reply(M::PostcopyAdvise, "half a message".to_owned())),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(HostError::new("hear of missing pages", error).into()),
            }
            let waited = wait_for(self.fd.as_fd(), PollFlags::IN, until);
            if !waited.map_err(|e| HostError::new("wait for missing pages", e))? {
                return Ok(None);
            }
        }
    }

    /// Says that a page is there now.
    pub fn has_arrived(&self, page: GuestAddr) -> Result<()> {
        let here = |&&(_, len, guest): &&(u64, u64, GuestAddr)| {
            page.0.checked_sub(guest.0).is_some_and(|offset| offset < len)
        };
        let Some(&(base, _, guest)) = self.regions.iter().find(here) else {
            return Err(FrontendError::range(format!("{page} is in no region")));
        };
        let at = base + (page.0 - guest.0);
        Ok(wake(self.fd.as_fd(), at, PAGE).map_err(|e| HostError::new("wake a back-end", e))?)
    }

    /// Notes where a region is in the back-end.
    fn add(&mut self, message: M, region: &Region, there: payload::Region) -> Result<()> {
        if (there.guest, there.size) != (region.guest(), region.size()) {
            let why = format!("{:#x} bytes at guest address {}", there.size, there.guest);
            return Err(bad_reply(message, why));
        }
        self.regions.push((there.user.0, there.size, there.guest));
        Ok(())
    }

    fn guest(&self, address: u64) -> Result<GuestAddr> {
        let guest = |&(base, len, guest): &(u64, u64, GuestAddr)| {
            let offset = address.checked_sub(base).filter(|&offset| offset < len)?;
            Some(GuestAddr(guest.0 + offset))
        };
        let outside =
            || FrontendError::range(format!("{address:#x} is in no region of the back-end"));
        self.regions.iter().find_map(guest).ok_or_else(outside)
    }
}

impl AsFd for MissingPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn bad_reply(message: M, why: String) -> FrontendError {
    FrontendError::BadReply { message: message.name(), why }
}
