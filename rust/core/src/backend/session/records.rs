//! The records of requests in flight of all queues, in the file that the front-end keeps.

use crate::memory::{InflightFile, Window};
use crate::ring::InflightRecord;
use crate::wire::payload::Inflight;

/// The records of all queues, one behind the other.
pub(super) struct Records {
    file: InflightFile,
    queues: u16,
    /// Bytes from one queue's record to the next.
    stride: u64,
    /// What is known of each queue's.
    states: Vec<State>,
}

/// What is known of one queue's record.
#[derive(Clone, Copy, Default)]
struct State {
    /// It is of a driver that has reset the device since.
    stale: bool,
    /// It was last that of a packed ring. Firmware may have driven the queue as a split ring before,
    /// or the other way round: what it has left says nothing.
    packed: Option<bool>,
}

impl Records {
    /// The records in a file that is mapped. `None`: there is no room for so many queues.
    pub(super) fn new(file: InflightFile, inflight: &Inflight, packed: bool) -> Option<Self> {
        let (queues, stride) = (inflight.num_queues, stride(inflight, packed)?);
        Some(Self { file, queues, stride, states: vec![State::default(); queues.into()] })
    }

    /// The record of a queue whose ring has so many entries. One of before a reset is emptied.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) fn take(
        &mut self,
        index: u16,
        size: u16,
        packed: bool,
    ) -> Result<InflightRecord, String> {
        let record = self.find(index, size, packed)?;
        if let Some(state) = self.states.get_mut(usize::from(index)) {
            let former = state.packed.replace(packed);
            if std::mem::take(&mut state.stale) || former.is_some_and(|former| former != packed) {
                record.erase();
            }
        }
        Ok(record)
    }

    /// The last 64 bytes of the first queue's record, if records have `of_one` bytes.
    pub(super) fn last_line_of_first(&self, of_one: u64) -> Option<Window> {
        let at = self.stride.checked_sub(64).filter(|_| self.stride == of_one)?;
        self.file.window(usize::try_from(at).ok()?, 64)
    }

    /// The device was reset: no request of before comes again.
    pub(super) fn forget(&mut self) {
        self.states.iter_mut().for_each(|state| state.stale = true);
    }

    /// This queue's ring was set up anew: none of its requests of before comes again.
    pub(super) fn forget_one(&mut self, index: u16) {
        if let Some(state) = self.states.get_mut(usize::from(index)) {
            state.stale = true;
        }
    }

    fn find(&self, index: u16, size: u16, packed: bool) -> Result<InflightRecord, String> {
        if index >= self.queues {
            return Err(format!("the record (SET_INFLIGHT_FD) is of {} queues", self.queues));
        }
        let needed = InflightRecord::bytes(size, packed);
        if needed > self.stride {
            return Err(format!(
                "the record (SET_INFLIGHT_FD) has {} bytes for each queue, and a ring of {size} \
                 entries needs {needed}",
                self.stride
            ));
        }
        let at = usize::try_from(self.stride * u64::from(index)).ok();
        let found = at.and_then(|at| InflightRecord::find(&self.file, at, size, packed));
        found.ok_or_else(|| "the record (SET_INFLIGHT_FD) is not aligned to 64 bytes".to_owned())
    }
}

/// Bytes from one queue's record to the next. The back-end that made the file has chosen them; all
/// known ones take the same for the same entries, and no front-end changes the size that it was
/// given. `None`: there is no room for a record.
fn stride(inflight: &Inflight, packed: bool) -> Option<u64> {
    let Inflight { mmap_size, num_queues, queue_size, .. } = *inflight;
    let queues = u64::from(num_queues);
    let each = mmap_size.checked_div(queues)?;
    let is_even = each.is_multiple_of(64) && mmap_size.is_multiple_of(queues);
    let stride = if is_even { each } else { InflightRecord::bytes(queue_size, packed) };
    (stride >= InflightRecord::bytes(1, packed) && stride.checked_mul(queues)? <= mmap_size)
        .then_some(stride)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stride_of(mmap_size: u64, num_queues: u16, queue_size: u16) -> Option<u64> {
        stride(&Inflight { mmap_size, mmap_offset: 0, num_queues, queue_size }, false)
    }

    /// As DPDK has them: 32 bytes for each entry, and a header.
    #[test]
    fn a_packed_ring_has_a_longer_record() {
        assert_eq!(InflightRecord::bytes(256, true), 8256);
        assert_eq!(InflightRecord::bytes(255, true), 8192);
        assert_eq!(InflightRecord::bytes(32768, true), 1_048_640);
        let inflight =
            Inflight { mmap_size: 12288, mmap_offset: 0, num_queues: 1, queue_size: 255 };
        assert_eq!(stride(&inflight, true), Some(12288));
        let inflight =
            Inflight { mmap_size: 3 * 4096, mmap_offset: 0, num_queues: 5, queue_size: 1 };
        assert_eq!(stride(&inflight, true), Some(64));
    }

    #[test]
    fn a_record_is_found_whatever_size_its_back_end_made_it_for() {
        // As asked for.
        assert_eq!(stride_of(2112, 1, 128), Some(2112));
        assert_eq!(stride_of(4 * 2112, 4, 128), Some(2112));
        // For rings of 1024, though rings of 128 were asked for.
        assert_eq!(stride_of(4 * 16448, 4, 128), Some(16448));
        // Rounded up to a page.
        assert_eq!(stride_of(8192, 3, 128), Some(2112));
        assert_eq!(stride_of(4096, 3, 128), None);
        assert_eq!(stride_of(0, 1, 128), None);
    }
}
