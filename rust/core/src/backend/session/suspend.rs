//! A machine that stops without waiting for its disk: GET_VRING_BASE_INFLIGHT.
//!
//! Requests that the device [may leave](crate::device::Device::can_be_left) stay in the record, and are
//! done from their beginning where the machine goes on. All others are waited for as ever, above all
//! writes: one that is carried out late, here, would undo what the machine has written to the same place
//! there.

use super::session::Session;
use crate::backend::event::Event;
use crate::connection::Action;
use crate::wire::ProtocolFeatures;
use crate::worker::QueueCell;

impl Session<'_> {
    /// Whether a ring that stops now belongs to a machine that stops: then no other ring has requests
    /// that could suffer when memory is taken away from the device.
    pub(super) fn is_suspending(&self) -> bool {
        let accepted = self.connection.protocol_features();
        accepted.contains(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
            && !self.vrings.iter().any(|vring| vring.queue.is_some() && vring.enabled)
    }

    /// Leaves what the device has of a ring in the record. Its memory is taken away with the last
    /// ring of the machine.
    pub(super) fn leave_in_record(&mut self, queue: &QueueCell) {
        let late = queue.close().unwrap_or_default();
        // One that guest memory holds up does not end either, which is said then.
        let _ = queue.mark_rest();
        self.unfinished_reads.get_or_insert_default().extend(late.reads);
        self.event(Event::LeftInRecord { queue: queue.index(), requests: late.requests });
    }

    /// Takes memory away from requests that were left: no ring is started any more, or what is asked
    /// for may have the guest use its memory.
    pub(super) fn take_from_left(&mut self) {
        if let Some(reads) = self.unfinished_reads.take() {
            self.take_from_device(&reads);
        }
    }

    /// Takes memory away from requests that were left unless the machine is still stopping.
    pub(super) fn before(&mut self, action: &Action) {
        match action {
            Action::StopRing { .. } | Action::Enable { enabled: false, .. } => {}
            _ => self.take_from_left(),
        }
    }
}
