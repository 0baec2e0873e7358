//! What a session has of one vring.

use std::sync::Arc;

use crate::address::GuestAddr;
use crate::ring_position::RingPosition;
use crate::worker::{Notifier, QueueCell};

/// A vring's descriptors and flags, as long as the session lasts.
#[derive(Default)]
pub(super) struct Vring {
    pub(super) enabled: bool,
    pub(super) call: Option<Notifier>,
    pub(super) error: Option<Notifier>,
    /// Where the dirty log knows its used ring, if writes to that are to be noted.
    pub(super) used_log: Option<GuestAddr>,
    /// Where it stopped last.
    pub(super) left_at: Option<RingPosition>,
    /// While it is started.
    pub(super) queue: Option<Arc<QueueCell>>,
}
