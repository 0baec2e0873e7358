//! The record of requests in flight that the front-end keeps: made, taken, and found for a ring.

use super::records::Records;
use super::session::Session;
use crate::backend::event::Event;
use crate::connection::{Outcome, Refusal, RingSetup};
use crate::memory::InflightFile;
use crate::ring::InflightRecord;
use crate::wire::ReceivedFd;
use crate::wire::features::RING_PACKED;
use crate::wire::payload::Inflight;

impl Session<'_> {
    /// Makes a file for the records of so many queues, of any length that a ring may have: a
    /// front-end does not know what its driver makes of the rings.
    pub(super) fn make_record(&self, asked: Inflight) -> Result<Outcome, Refusal> {
        let mmap_size = self.record_bytes() * u64::from(asked.num_queues);
        let made = InflightFile::create(mmap_size);
        let fd = made.map_err(|error| Refusal(format!("GET_INFLIGHT_FD: no memory: {error}")))?;
        let inflight = Inflight { mmap_size, mmap_offset: 0, ..asked };
        Ok(Outcome::Record { inflight, fd })
    }

    /// Bytes of a queue's record in a file that is made here. The last of them are no ring's: a packed
    /// ring of one entry would need them all.
    pub(super) fn record_bytes(&self) -> u64 {
        InflightRecord::bytes(self.device().max_queue_size().max(2), self.is_packed())
    }

    pub(super) fn set_record(&mut self, inflight: Inflight, fd: ReceivedFd) -> Result<(), Refusal> {
        let Inflight { mmap_size, mmap_offset, num_queues, .. } = inflight;
        let cannot = |why: String| Refusal(format!("SET_INFLIGHT_FD: {why}"));
        let file = InflightFile::map(&self.memory_policy, fd, mmap_offset, mmap_size)
            .map_err(|error| cannot(error.to_string()))?;
        file.watch(&self.loss);
        let records = Records::new(file, &inflight, self.is_packed()).ok_or_else(|| {
            cannot(format!("{mmap_size} bytes are too few for {num_queues} queues"))
        })?;
        self.records = Some(records);
        self.take_note();
        Ok(())
    }

    /// Whether rings are packed ones, as far as was negotiated.
    fn is_packed(&self) -> bool {
        self.connection.features() & RING_PACKED != 0
    }

    /// The record of a ring that starts, if the front-end keeps one.
    pub(super) fn record(&mut self, setup: &RingSetup) -> Option<InflightRecord> {
        let RingSetup { index, size, base, .. } = *setup;
        let left_at = self.vrings[usize::from(index)].left_at.take();
        let records = self.records.as_mut()?;
        // The driver has set the ring up anew since this back-end has left it.
        if left_at.is_some_and(|left_at| !left_at.goes_on_at(base)) {
            records.forget_one(index);
        }
        match records.take(index, size, base.is_packed()) {
            Ok(record) => {
                self.make_note();
                Some(record)
            }
            Err(why) => {
                self.event(Event::NotRecorded { queue: index, why });
                None
            }
        }
    }

    /// The device was reset: no request of before comes again.
    pub(super) fn forget_records(&mut self) {
        if let Some(records) = &mut self.records {
            records.forget();
        }
    }
}
