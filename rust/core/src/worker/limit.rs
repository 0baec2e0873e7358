//! Requests that are longer than the device takes: they fail, and it never sees them.

use super::queue::Queue;
use super::report::Failed;
use crate::request::Batch;

impl Queue {
    /// Fails those of the requests of a batch that are too long.
    #[inline]
    pub(super) fn refuse_too_long(&mut self, batch: &mut Batch) {
        // Where chains are not walked to their ends at once their lengths are known only now.
        if self.too_long || self.ring.memory().needs_resolving() {
            self.refuse_all(batch);
        }
    }

    #[cold]
    fn refuse_all(&mut self, batch: &mut Batch) {
        self.too_long = false;
        let most = self.max_bytes;
        for request in batch.take_if(|request| request.bytes() > most) {
            if !std::mem::replace(&mut self.told_too_long, true) {
                let bytes = request.bytes();
                self.report.request_failed(self.index, Failed::TooLong { bytes, most });
            }
            let written = self.device.refuse(self.index, &request);
            batch.fail(request, written);
        }
    }
}
