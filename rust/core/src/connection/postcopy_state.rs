//! How far a front-end has got with memory whose pages are on their way.

use crate::wire::payload::{MemoryTable, Region};

/// How far the front-end has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Postcopy {
    pub(super) advised: bool,
    pub(super) listening: bool,
    /// How many regions there will be when those that were answered are acknowledged.
    pub(super) awaited: Option<u64>,
}

/// What the front-end has told of regions, to be answered with other addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Table(MemoryTable),
    One(Region),
}

impl Postcopy {
    /// Whether regions come with pages missing.
    pub(super) fn listens(self) -> bool {
        self.listening
    }
}
