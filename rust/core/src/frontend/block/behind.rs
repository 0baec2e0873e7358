//! A driver behind an IOMMU: what it maps for its requests, and the back-end's questions.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::super::channel::IotlbMiss;
use super::super::error::Result;
use super::super::messages::VringDescription;
use super::super::signals;
use super::mappings::{IommuCounts, STANDING};
use super::{BlockDriver, BlockQueue, BlockRequest, Completion};
use crate::address::Iova;
use crate::error::HostError;
use crate::sys::interrupt;

impl BlockDriver {
    /// What has happened to the translations of this driver's addresses; `None` if there is no IOMMU.
    pub fn iommu_counts(&self) -> Option<IommuCounts> {
        self.behind.as_ref().map(|behind| behind.counts)
    }

    /// A ring as the back-end is told of it.
    pub(super) fn described<'a>(&self, queue: &'a BlockQueue) -> VringDescription<'a> {
        let ring = VringDescription::from(queue.ring());
        let first = self.memory().regions().first();
        match first.filter(|_| self.behind.is_some()) {
            Some(region) => {
                ring.at_iova(|user| Iova(user.0 - region.user().0 + region.guest().0 + STANDING))
            }
            None => ring,
        }
    }

    /// Makes a request available, and its data if there is an IOMMU.
    pub(super) fn submit(&mut self, index: usize, slot: u16, request: BlockRequest) -> Result<()> {
        let Self { behind, client, memory, queues, .. } = self;
        let queue = &mut queues[index];
        if let Some(behind) = behind {
            let lent = behind.lend((client, &**memory), (&mut *queue, index), slot, &request);
            lent.inspect_err(|_| queue.return_slot(slot))?;
        }
        queue.submit(slot, request);
        Ok(())
    }

    /// Takes the next answer of a queue, and away from the device what the request had.
    pub(super) fn completed(&mut self, index: usize) -> Result<Option<Completion>> {
        let Self { behind, client, queues, .. } = self;
        let Some(done) = queues[index].completed()? else { return Ok(None) };
        if let Some(behind) = behind {
            behind.take_back(client, (&queues[index], index), done.slot, &done.request)?;
        }
        Ok(Some(done))
    }

    /// As [`Ring::wait`](super::super::Ring::wait), with the back-end's questions answered meanwhile.
    pub(super) fn wait_and_translate(&mut self, index: usize) -> Result<bool> {
        let until = Instant::now() + self.options.timeout;
        loop {
            self.answer_misses()?;
            if self.queues[index].ring_mut().wait(Duration::ZERO, self.client.as_fd())? {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let slice = interrupt::slice(Some(left)).unwrap_or(left);
            let ring = VringDescription::from(self.queues[index].ring());
            signals::sleep_beside(&ring.events(), self.client.channel_fd(), &self.client, slice)?;
            interrupt::ask().map_err(|e| HostError::new("wait for a call", e))?;
        }
    }

    /// Answers a question of the back-end's.
    pub(super) fn answer_miss(&mut self, miss: IotlbMiss) -> Result<()> {
        let Self { behind, client, memory, .. } = self;
        let Some(behind) = behind else { return Ok(()) };
        behind.counts.asked += 1;
        client.answer_miss(miss, &behind.table, memory).map(drop)
    }

    /// Answers what the back-end has asked by now.
    pub(super) fn answer_misses(&mut self) -> Result<()> {
        let Self { behind, client, memory, .. } = self;
        behind.as_mut().map_or(Ok(()), |behind| behind.answer(client, memory))
    }

    /// Has all of memory mapped for a load, or as before.
    ///
    /// # Errors
    /// The back-end refuses it.
    pub(in super::super) fn open_all(&mut self, is_open: bool) -> Result<()> {
        let Self { behind, client, memory, queues, .. } = self;
        let Some(behind) = behind else { return Ok(()) };
        if is_open {
            queues.iter_mut().for_each(BlockQueue::show_all_data);
            return behind.open(client, memory);
        }
        behind.close(client, queues)
    }

    /// Tells a back-end that is new what it would have to ask for during a load.
    pub(super) fn tell_if_open(&mut self) -> Result<()> {
        let Self { behind, client, memory, .. } = self;
        let open = behind.as_mut().filter(|behind| behind.is_open);
        open.map_or(Ok(()), |behind| behind.open(client, memory))
    }
}
