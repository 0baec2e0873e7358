//! What a queue waits for where its addresses are translated.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::memory::Miss;
use crate::ring_position::RingPosition;

/// The state of a queue whose addresses are translated.
#[derive(Debug, Default)]
pub(super) struct Translations {
    /// What the front-end was asked for and has not answered.
    pub(super) asked: Vec<Miss>,
    /// The number of that question.
    pub(super) question: u64,
    /// What it has answered that it does not translate.
    pub(super) failed: Vec<Miss>,
    /// The ring has no place in memory.
    pub(super) apart: bool,
    /// The ring was taken up.
    pub(super) begun: bool,
    /// The chain that was put back last, by where the ring stood before it and how many chains of a
    /// process that died were left then, and how often it was.
    pub(super) rounds: Option<((RingPosition, u16), u32)>,
    /// The chain that is popped next is not waited for any longer.
    pub(super) gives_up: bool,
}

/// Whether a queue waits for translations: looked at without its lock.
pub(super) type Waits = Arc<AtomicBool>;
