//! A chain: where it comes from, and its walk, in which each descriptor is checked and its buffer
//! looked up.
//!
//! VIRTIO 1.3, "The Virtqueue Descriptor Table".

use super::RingError;
use crate::address::GuestAddr;
use crate::memory::{Access, Buffers};

pub(super) const DESC_LEN: usize = 16;
pub(super) const DESC_NEXT: u16 = 1;
pub(super) const DESC_WRITE: u16 = 2;
pub(super) const DESC_INDIRECT: u16 = 4;

/// Where a chain comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its number among all that were ever popped from the ring. A chain that comes again has the
    /// number that it had at first; without a record numbers begin with 0 at each start.
    pub sequence: u64,
    /// It comes again: a process that had it died.
    pub resubmitted: bool,
}

/// A copy of one descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) at: GuestAddr,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    #[inline]
    pub(super) fn new(low: u64, high: u64) -> Self {
        Self {
            at: GuestAddr(low),
            len: high as u32,
            flags: (high >> 32) as u16,
            next: (high >> 48) as u16,
        }
    }

    /// One of a packed ring, which has no `next`.
    #[inline]
    pub(super) fn packed(low: u64, high: u64) -> Self {
        Self { at: GuestAddr(low), len: high as u32, flags: (high >> 48) as u16, next: 0 }
    }

    #[inline]
    fn from_table(table: &[u8], index: u16) -> Self {
        let (low, high) = words(table, index.into());
        Self::new(low, high)
    }
}

/// The two halves of an entry of a table.
#[inline]
fn words(table: &[u8], index: usize) -> (u64, u64) {
    let (entries, _) = table.as_chunks::<DESC_LEN>();
    let entry = u128::from_le_bytes(entries[index]);
    (entry as u64, (entry >> 64) as u64)
}

/// How the entries of an indirect table follow each other, and what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableForm {
    /// By their `next` fields: of a split ring.
    Linked,
    /// Each on the one before, to the end of the table: of a packed ring.
    Sequential,
    /// As before, and all of it is device-readable, whatever the entries say.
    SequentialReadable,
}

/// What the walk of one chain has to remember.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) head: u16,
    limit: u16,
    count: u16,
    bytes: u64,
    writable: bool,
    form: TableForm,
}

impl Chain {
    pub(super) fn new(head: u16, limit: u16, form: TableForm) -> Self {
        Self { head, limit, count: 0, bytes: 0, writable: false, form }
    }

    #[inline]
    pub(super) fn add(
        &mut self,
        descriptor: Descriptor,
        buffers: &mut Buffers,
    ) -> Result<(), RingError> {
        let head = self.head;
        if self.count == self.limit {
            return Err(RingError::TooLong { head, limit: self.limit });
        }
        self.count += 1;
        let writable = descriptor.flags & DESC_WRITE != 0;
        if self.writable && !writable {
            return Err(RingError::ReadableAfterWritable { head });
        }
        self.writable = writable;
        self.bytes += u64::from(descriptor.len);
        if self.bytes > u64::from(u32::MAX) {
            return Err(RingError::TooLarge { head });
        }
        if descriptor.len == 0 {
            return Ok(());
        }
        let access = if writable { Access::DeviceWritable } else { Access::DeviceReadable };
        buffers.add(descriptor.at, descriptor.len, access);
        Ok(())
    }

    /// Returns the number of bytes of the table that `outer` describes.
    pub(super) fn table_len(&self, outer: Descriptor) -> Result<usize, RingError> {
        let (head, len) = (self.head, outer.len);
        let (bytes, count) = (len as usize, len / DESC_LEN as u32);
        let whole = bytes.is_multiple_of(DESC_LEN);
        if !whole || count == 0 || count > u32::from(self.limit) {
            return Err(RingError::BadTable { head, len });
        }
        Ok(bytes)
    }

    /// Walks the rest of the chain in a copy of its indirect table.
    #[inline]
    pub(super) fn walk_table(self, table: &[u8], buffers: &mut Buffers) -> Result<(), RingError> {
        match self.form {
            TableForm::Linked => self.walk_links(table, buffers),
            TableForm::Sequential => self.walk_sequence(table, !0, buffers),
            TableForm::SequentialReadable => self.walk_sequence(table, !DESC_WRITE, buffers),
        }
    }

    /// Of a packed ring's table WRITE is the only flag that has a meaning: drivers leave others
    /// there.
    fn walk_sequence(
        mut self,
        table: &[u8],
        flags: u16,
        buffers: &mut Buffers,
    ) -> Result<(), RingError> {
        for index in 0..table.len() / DESC_LEN {
            let (low, high) = words(table, index);
            let mut descriptor = Descriptor::packed(low, high);
            descriptor.flags &= flags;
            if descriptor.flags & DESC_INDIRECT != 0 {
                return Err(RingError::BadIndirect { head: self.head });
            }
            self.add(descriptor, buffers)?;
        }
        Ok(())
    }

    fn walk_links(mut self, table: &[u8], buffers: &mut Buffers) -> Result<(), RingError> {
        let head = self.head;
        let count = (table.len() / DESC_LEN) as u32;
        let mut index = 0;
        loop {
            let descriptor = Descriptor::from_table(table, index);
            if descriptor.flags & DESC_INDIRECT != 0 {
                return Err(RingError::BadIndirect { head });
            }
            self.add(descriptor, buffers)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if u32::from(index) >= count {
                return Err(RingError::BadNext { head, next: index, table: count });
            }
        }
    }
}
