//! A table of mappings that a signal handler reads while others change it.
//!
//! Whoever notes a mapping claims a free slot, fills it in and stores its start last. Whoever looks
//! reads the start, the rest, and the start again: what changed meanwhile is not the slot that was
//! looked for, as that is held by somebody. The order of these accesses is what a model checker
//! goes through in the tests, on this very file.

use std::ptr;

use super::atomics::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// The start of a slot that nobody has.
pub(super) const FREE: usize = 0;

/// The start of a slot that is being filled in.
pub(super) const CLAIMED: usize = 1;

/// Whose memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A file's memory.
    File,
    /// Another domain's memory, lent by the hypervisor. Linux's drivers keep an account of such an
    /// area as a whole and have not always counted parts of it right: it is replaced whole or not
    /// at all. And a system call that cannot reach it says nothing of a loss: the kernel refuses
    /// direct I/O on it, with EFAULT.
    Domain,
}

/// A table of mappings.
pub(super) struct Table<const N: usize> {
    pub(super) slots: [Slot; N],
    /// The number of the first slot that was never used; nor was any behind it.
    pub(super) used: AtomicUsize,
    /// The number of the slot to look at first for a free one. Those before it are in use, but for
    /// some that were freed while others were filled in.
    pub(super) hint: AtomicUsize,
}

/// One noted mapping. All fields are filled in between `CLAIMED` and the real start, with release
/// stores: who reads one that is newer than the start it has read sees another start when it
/// looks again.
pub(super) struct Slot {
    pub(super) start: AtomicUsize,
    pub(super) len: AtomicUsize,
    pub(super) loss: AtomicPtr<()>,
    pub(super) lent: AtomicBool,
    pub(super) process: AtomicU32,
}

/// A mapping that was found.
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) loss: *const (),
    pub(super) owner: Owner,
}

impl<const N: usize> Table<N> {
    /// Fills in a free slot; `None` if there is none.
    pub(super) fn note(
        &self,
        start: usize,
        len: usize,
        owner: Owner,
        process: u32,
    ) -> Option<(usize, &Slot)> {
        let hint = self.hint.load(Ordering::Relaxed);
        let number = (hint..N).chain(0..hint).find(|&number| self.slots[number].claim())?;
        // Unless a slot before it was freed meanwhile.
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.hint.compare_exchange(hint, number + 1, success, failure);
        self.used.fetch_max(number + 1, Ordering::AcqRel);
        let slot = &self.slots[number];
        slot.len.store(len, Ordering::Release);
        slot.loss.store(ptr::null_mut(), Ordering::Release);
        slot.lent.store(owner == Owner::Domain, Ordering::Release);
        slot.process.store(process, Ordering::Release);
        slot.start.store(start, Ordering::Release);
        Some((number, slot))
    }

    pub(super) fn free(&self, number: usize) {
        self.slots[number].free();
        self.hint.fetch_min(number, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> &[Slot] {
        &self.slots[..self.used.load(Ordering::Acquire)]
    }

    pub(super) fn find(&self, address: usize, process: u32) -> Option<Found> {
        self.used().iter().find_map(|slot| slot.holds(address, process))
    }
}

impl Slot {
    fn claim(&self) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        self.start.compare_exchange(FREE, CLAIMED, success, failure).is_ok()
    }

    pub(super) fn free(&self) {
        self.start.store(FREE, Ordering::Release);
    }

    fn holds(&self, address: usize, process: u32) -> Option<Found> {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        let loss = self.loss.load(Ordering::Acquire);
        let lent = self.lent.load(Ordering::Acquire);
        let owner = if lent { Owner::Domain } else { Owner::File };
        let ours = self.process.load(Ordering::Acquire) == process;
        let steady = start > CLAIMED && self.start.load(Ordering::Acquire) == start;
        let inside = address.checked_sub(start).is_some_and(|offset| offset < len);
        (steady && ours && inside).then_some(Found { start, len, loss, owner })
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, len) = (&self.start, &self.len);
        f.debug_struct("Slot").field("start", start).field("len", len).finish_non_exhaustive()
    }
}
