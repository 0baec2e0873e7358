//! What a driver puts into a ring of either format, and what it gets back.

use crate::address::GuestAddr;

/// One piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address of the first byte.
    pub addr: GuestAddr,
    /// Bytes.
    pub len: u32,
    /// For the device to write to; else it reads. Those it reads come first in a chain.
    pub device_writes: bool,
}

impl Segment {
    /// For the device to read.
    pub fn readable(addr: GuestAddr, len: u32) -> Self {
        Self { addr, len, device_writes: false }
    }

    /// For the device to write to.
    pub fn writable(addr: GuestAddr, len: u32) -> Self {
        Self { addr, len, device_writes: true }
    }
}

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedChain {
    /// What the driver knows it by.
    pub token: u16,
    /// Bytes that the device says it wrote. `None`: it gave back a batch in order and did not
    /// say; the standard has it taken that all writable bytes were written.
    pub len: Option<u32>,
}
