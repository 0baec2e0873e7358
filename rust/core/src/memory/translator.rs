//! What translates addresses of rings and buffers, where these are not the guest's own.
//!
//! A table of memory with translations is a queue's own: it has the [`Cache`] of that queue, and
//! nobody but the holder of the queue's lock looks an address up in it.

use std::sync::Arc;

use super::access::Access;
use super::index::Index;
use super::iotlb::{Cache, Iotlb, MOST_TRANSLATIONS};
use crate::address::Iova;

/// The most pieces of memory of one side of a chain. No chain can have more translations at a time.
pub(super) const MOST_PIECES: usize = MOST_TRANSLATIONS;

/// How a front-end's addresses are to be understood. The default: those of rings are its own, and
/// those of buffers are the guest's.
#[derive(Clone, Debug, Default)]
pub struct Addressing {
    /// GPA_ADDRESSES: what would be the front-end's own addresses are the guest's.
    pub guest: bool,
    /// ACCESS_PLATFORM: those of rings and buffers are I/O virtual, and are translated by this.
    pub iotlb: Option<Arc<Iotlb>>,
}

/// A translation that the front-end has to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// An address that has none.
    pub iova: Iova,
    /// The access that it must allow.
    pub access: Access,
}

/// What one queue needs to translate addresses.
#[derive(Debug)]
pub(super) struct Translator {
    pub(super) iotlb: Arc<Iotlb>,
    pub(super) cache: Cache,
    /// Finds the regions of the guest's addresses, which are not what chains name.
    pub(super) by_guest: Index,
}

impl Addressing {
    /// Returns whether both understand addresses in the same way.
    pub fn is_like(&self, other: &Self) -> bool {
        let same_table = match (&self.iotlb, &other.iotlb) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, Some(_)) | (Some(_), None) => false,
        };
        self.guest == other.guest && same_table
    }
}

impl Translator {
    pub(super) fn new(iotlb: &Arc<Iotlb>, by_guest: Index) -> Box<Self> {
        Box::new(Self { iotlb: Arc::clone(iotlb), cache: Cache::default(), by_guest })
    }

    /// Returns whether the table has a translation for what is missed.
    pub(super) fn knows(&self, miss: Miss) -> bool {
        self.cache.place(&self.iotlb, miss.iova.0, 1, miss.access).is_some()
    }
}
