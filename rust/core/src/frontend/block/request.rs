//! One block request.

/// Kinds of request: VIRTIO 1.3, "Block Device", "Device Operation".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// Disk to memory.
    Read = 0,
    /// Memory to disk.
    Write = 1,
    /// Make all completed writes durable.
    Flush = 4,
    /// The device's name, 20 bytes.
    GetId = 8,
    /// Forget a range.
    Discard = 11,
    /// Set a range to zero.
    WriteZeroes = 13,
}

/// One block request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// What to do.
    pub op: Op,
    /// First sector; 0 where it has no meaning.
    pub sector: u64,
    /// Bytes of data between the header and the status.
    pub len: u32,
}

impl Op {
    /// The name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::GetId => "get id",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes",
        }
    }

    /// Whether the device writes the data.
    pub(super) fn device_writes(self) -> bool {
        matches!(self, Self::Read | Self::GetId)
    }
}
