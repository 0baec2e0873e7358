//! What bounce buffers may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the bounce buffers of all requests that a queue has in flight: a guest has granted one
/// page, and may name it in all of them. What does not fit is mapped instead.
pub(super) const MOST: usize = 8 << 20;

/// The bytes that a queue's bounce buffers have taken.
#[derive(Debug, Default)]
pub struct Room(AtomicUsize);

/// Some of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    /// Takes `bytes`, if that makes no more than `most`.
    pub(super) fn take(self: &Arc<Self>, bytes: usize, most: usize) -> Option<Taken> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|&taken| taken <= most);
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, fits).ok()?;
        Some(Taken { room: Arc::clone(self), bytes })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let room = Arc::new(Room::default());
        let first = room.take(60, 100).unwrap();
        assert!(room.take(41, 100).is_none());
        assert!(room.take(usize::MAX, usize::MAX).is_none());
        let second = room.take(40, 100).unwrap();
        drop(first);
        assert!(room.take(60, 100).is_some());
        drop(second);
        assert!(room.take(100, 100).is_some());
    }
}
