//! Python's buffers as data that is sent to a driver.

use vhost_user_core::device::SendData;

use crate::raw_bytes::RawSource;
use crate::traits::Parts;

/// Buffers, one behind the other.
pub(crate) struct GatheredBytes<'a> {
    parts: Vec<RawSource<'a>>,
    bytes: u64,
}

impl<'a> GatheredBytes<'a> {
    pub(crate) fn new(parts: Vec<RawSource<'a>>) -> Self {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts, bytes }
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl SendData for GatheredBytes<'_> {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn copy_to(&self, from: u64, to: Parts<'_>) {
        // Both are less than the bytes that this process can address.
        let (mut skip, mut target) = (from as usize, to);
        for part in &self.parts {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            let done = part.part(skip..part.len()).copy_to(target.clone());
            target.advance(done);
            skip = 0;
        }
    }
}
