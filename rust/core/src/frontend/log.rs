//! The front-end's side of the dirty log: which pages of guest memory a back-end has written to.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use super::client::{Client, copy};
use super::error::{FrontendError, Result};
use super::memory::GuestMemory;
use super::messages::VringDescription;
use crate::error::HostError;
use crate::sys::shared::SharedMemory;
use crate::wire::payload::Log;
use crate::wire::{FrontendMessage as M, Payload};

/// The bytes of guest memory that a bit stands for.
pub const LOG_PAGE: u64 = 4096;

/// A log in a memfd of its own, to be given to one back-end or to several.
#[derive(Debug)]
pub struct DirtyLog(SharedMemory);

impl DirtyLog {
    /// A log of so many bytes, a multiple of 8, with no bit set.
    pub fn new(bytes: u64) -> Result<Self> {
        let len = usize::try_from(bytes).ok().filter(|len| *len > 0 && len.is_multiple_of(8));
        let len = len.ok_or_else(|| {
            FrontendError::range(format!("a log of {bytes} bytes, which is no multiple of 8"))
        })?;
        let shared = SharedMemory::new("vhost-user dirty log", len)
            .map_err(|e| HostError::new(format!("make a log of {len} bytes"), e))?;
        Ok(Self(shared))
    }

    /// A log with a bit for each page up to the end of the highest region, as QEMU makes it.
    pub fn of(memory: &GuestMemory) -> Result<Self> {
        let end = memory.regions().iter().map(|region| region.guest().0 + region.size()).max();
        Self::new(end.unwrap_or(1).div_ceil(LOG_PAGE).div_ceil(64) * 8)
    }

    /// Its place, as SET_LOG_BASE has it.
    pub fn description(&self) -> Log {
        Log { size: self.0.len() as u64, offset: 0 }
    }

    /// Clears all bits; returns the numbers of the pages that had one, in order. What was written
    /// to them before can be read after.
    pub fn take(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for (word, first) in (0..self.0.len()).step_by(8).zip((0..).step_by(64)) {
            if self.0.load_u64(word, Ordering::Relaxed) != 0 {
                // It pairs with the fence of whoever has found a bit set already.
                let bits = u64::from_le(self.0.swap_u64(word, 0, Ordering::SeqCst));
                pages.extend((0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| first + bit));
            }
        }
        pages
    }
}

impl AsFd for DirtyLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Client {
    /// SET_LOG_BASE: has the back-end use this log, and no former one any more when this returns.
    pub fn set_log(&mut self, log: &DirtyLog) -> Result<()> {
        self.set_log_base(&log.description(), log.as_fd())
    }

    /// SET_LOG_BASE.
    pub fn set_log_base(&mut self, log: &Log, fd: BorrowedFd<'_>) -> Result<()> {
        self.ask_with(M::SetLogBase, log.to_bytes(), vec![copy(fd)?]).map(drop)
    }

    /// SET_VRING_ADDR with the ring's own addresses: has writes to the part that the driver reads
    /// logged from now on, or no more.
    pub fn log_ring<'a>(
        &mut self,
        index: u32,
        ring: impl Into<VringDescription<'a>>,
        on: bool,
    ) -> Result<()> {
        self.set_vring_addr(&ring.into().logged(on).addresses(index))
    }

    /// SET_LOG_FD: an eventfd that the back-end signals when it has set bits.
    pub fn set_log_fd(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell(M::SetLogFd, Vec::new(), vec![copy(fd)?])
    }
}
