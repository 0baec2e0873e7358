//! The record of requests in flight that the front-end keeps: made, taken, and found for a ring.

use super::records::Records;
use super::session::Session;
use crate::backend::event::Event;
use crate::connection::{Outcome, Refusal};
use crate::memory::InflightFile;
use crate::ring::InflightRecord;
use crate::wire::ReceivedFd;
use crate::wire::payload::Inflight;

impl Session<'_> {
    /// Makes a file for the records of so many queues, of any length that a ring may have: a
    /// front-end does not know what its driver makes of the rings.
    pub(super) fn make_record(&self, asked: Inflight) -> Result<Outcome, Refusal> {
        let of_one = InflightRecord::bytes(self.device().max_queue_size());
        let mmap_size = of_one * u64::from(asked.num_queues);
        let made = InflightFile::create(mmap_size);
        let fd = made.map_err(|error| Refusal(format!("GET_INFLIGHT_FD: no memory: {error}")))?;
        let inflight = Inflight { mmap_size, mmap_offset: 0, ..asked };
        Ok(Outcome::Record { inflight, fd })
    }

    pub(super) fn set_record(&mut self, inflight: Inflight, fd: ReceivedFd) -> Result<(), Refusal> {
        let Inflight { mmap_size, mmap_offset, num_queues, .. } = inflight;
        let cannot = |why: String| Refusal(format!("SET_INFLIGHT_FD: {why}"));
        let file = InflightFile::map(&self.memory_policy, fd, mmap_offset, mmap_size)
            .map_err(|error| cannot(error.to_string()))?;
        file.watch(&self.loss);
        let records = Records::new(file, &inflight).ok_or_else(|| {
            cannot(format!("{mmap_size} bytes are too few for {num_queues} queues"))
        })?;
        self.records = Some(records);
        self.take_note();
        Ok(())
    }

    /// The record of a ring that starts, if the front-end keeps one.
    pub(super) fn record(&mut self, index: u16, size: u16) -> Option<InflightRecord> {
        match self.records.as_mut()?.take(index, size) {
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
