//! Guest memory that the kernel moves data to and from by itself.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many system calls of a queue's requests the kernel carries out on the guest's own pages. It
/// has taken hold of the pages and goes on with them whatever is mapped in their place.
#[derive(Debug, Default)]
pub(crate) struct KernelHolds(AtomicU32);

/// One such call, as long as this value lives.
#[derive(Debug)]
pub struct KernelHold<'a>(&'a KernelHolds);

impl KernelHolds {
    /// Whether there are such calls now.
    pub(crate) fn any(&self) -> bool {
        // Acquire pairs with the release at the end of a call: what it wrote is there.
        self.0.load(Ordering::Acquire) > 0
    }

    pub(super) fn begin(&self) -> KernelHold<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        KernelHold(self)
    }
}

impl Drop for KernelHold<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_held_until_the_last_call_is_over() {
        let holds = KernelHolds::default();
        assert!(!holds.any());
        let (first, second) = (holds.begin(), holds.begin());
        drop(first);
        assert!(holds.any());
        drop(second);
        assert!(!holds.any());
    }
}
