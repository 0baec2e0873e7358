//! Indirect descriptor tables. Each is copied once, and the copy is walked.
//!
//! Those in mapped memory are copied and walked while their chains are popped. A table in memory
//! that is granted on demand costs a call to the hypervisor: so the walks of a batch stop there,
//! and go on when one call has copied the tables of all of them.
//!
//! VIRTIO 1.3, "Indirect Descriptors".

use std::ops::Range;

use super::RingError;
use super::chain::{Chain, Descriptor};
use crate::address::GuestAddr;
use crate::memory::{Buffers, Memory, Reads, Unreachable};

/// The most bytes of the tables of one batch, not counting those of its last chain. Those of 64
/// requests of the longest honest chains (Windows: 515 descriptors) come to twice that, those of
/// others to less.
const BATCH_BYTES: usize = 256 << 10;

/// The tables of a batch.
#[derive(Debug, Default)]
pub(super) struct Tables {
    reads: Reads,
    /// The chains that wait, in the order in which they were popped.
    waiting: Vec<Waiting>,
}

/// A chain that goes on in a table which is not here yet.
#[derive(Debug)]
struct Waiting {
    chain: Chain,
    at: GuestAddr,
    bytes: Range<usize>,
}

impl Tables {
    /// Reads the table that ends `chain`. `None`: it will be read, and walked, by
    /// [`walk`](Self::walk); or it lies outside of memory, and `buffers` have a fault.
    #[inline]
    pub(super) fn read(
        &mut self,
        memory: &Memory,
        outer: Descriptor,
        chain: Chain,
        buffers: &mut Buffers,
    ) -> Result<Option<&[u8]>, RingError> {
        let len = chain.table_len(outer)?;
        let start = self.reads.waiting();
        let table = match self.reads.read(memory, outer.at, len) {
            Ok(table) => table,
            Err(error) => {
                buffers.fail(outer.at, len as u64, error.reason);
                return Ok(None);
            }
        };
        if table.is_none() {
            self.waiting.push(Waiting { chain, at: outer.at, bytes: start..start + len });
        }
        Ok(table)
    }

    /// Returns whether no more tables should wait.
    pub(super) fn is_full(&self) -> bool {
        self.reads.waiting() >= BATCH_BYTES
    }

    /// Reads all tables that wait, and walks them: see
    /// [`SplitRing::finish_walks`](super::SplitRing::finish_walks).
    pub(super) fn walk<'a>(
        &mut self,
        popped: impl Iterator<Item = (u16, &'a mut Buffers)>,
    ) -> Result<(), (usize, RingError)> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.reads.make();
        let walked = self.walk_copies(popped);
        self.reads.clear();
        walked
    }

    fn walk_copies<'a>(
        &mut self,
        popped: impl Iterator<Item = (u16, &'a mut Buffers)>,
    ) -> Result<(), (usize, RingError)> {
        let mut waiting = self.waiting.drain(..).peekable();
        for (good, (head, buffers)) in popped.enumerate() {
            let Some(Waiting { chain, at, bytes }) = waiting.next_if(|w| w.chain.head == head)
            else {
                continue;
            };
            let len = bytes.len() as u64;
            match self.reads.bytes(bytes) {
                Some(table) => chain.walk_table(table, buffers).map_err(|error| (good, error))?,
                None => buffers.fail(at, len, Unreachable::NotGranted),
            }
        }
        Ok(())
    }
}
