//! A part of one region, found once and used without looking it up again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sys::shared::SharedMemory;

/// Offsets count from the window's first byte. Rings and requests are little-endian on every
/// host, and so are the numbers here: VIRTIO 1.3, "Split Virtqueues". An access outside the memory
/// panics: offsets are always our own.
#[derive(Clone, Debug)]
pub(super) struct Window {
    memory: Arc<SharedMemory>,
    start: usize,
}

impl Window {
    pub(super) fn new(memory: Arc<SharedMemory>, start: usize) -> Self {
        Self { memory, start }
    }

    #[inline]
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) {
        self.memory.read(self.start + offset, out);
    }

    #[inline]
    pub(super) fn write(&self, offset: usize, data: &[u8]) {
        self.memory.write(self.start + offset, data);
    }

    #[inline]
    pub(super) fn byte(&self, offset: usize) -> u8 {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0]
    }

    #[inline]
    pub(super) fn u16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.memory.load_u16(self.start + offset, order))
    }

    #[inline]
    pub(super) fn set_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.memory.store_u16(self.start + offset, value.to_le(), order);
    }

    #[inline]
    pub(super) fn u32(&self, offset: usize) -> u32 {
        u32::from_le(self.memory.load_u32(self.start + offset, Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_u32(&self, offset: usize, value: u32) {
        self.memory.store_u32(self.start + offset, value.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn u64(&self, offset: usize) -> u64 {
        u64::from_le(self.memory.load_u64(self.start + offset, Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_u64(&self, offset: usize, value: u64) {
        self.memory.store_u64(self.start + offset, value.to_le(), Ordering::Relaxed);
    }
}
