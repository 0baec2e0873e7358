//! One message as it travels: a 12-byte header, its payload and its file descriptors.
//!
//! Source: QEMU "Vhost-user Protocol", "Message Specification / Header".

use std::os::fd::OwnedFd;

use bitflags::bitflags;

use crate::sys::received_fd::ReceivedFd;

/// Descriptors accepted with one message. The specification speaks of 8, but rust-vmm's and
/// crosvm's front-ends send up to 32 regions, each with its descriptor.
pub const MAX_FDS: usize = 32;

/// Payload bytes accepted. The longest legal payload is 2056 bytes (shared-memory regions);
/// rust-vmm accepts 4096, so nobody sends more.
pub const MAX_PAYLOAD: usize = 4096;

bitflags! {
    /// The flag word of a header.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Protocol version 1: always present.
        const VERSION = 0x1;
        /// This message is a reply.
        const REPLY = 0x4;
        /// The sender wants an acknowledgement.
        const NEED_REPLY = 0x8;
        const _ = !0;
    }
}

/// The 12 bytes in front of each payload, in native byte order.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | request |
/// | 4 | 4 | flags |
/// | 8 | 4 | payload bytes that follow |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's number.
    pub request: u32,
    /// Version, reply and need-reply bits, as received: not yet checked.
    pub flags: Flags,
    /// Payload bytes that follow.
    pub size: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 12;

    /// Reads a header. Every bit pattern is one: `wire` judges it, not this.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: Flags::from_bits_retain(u32::from_ne_bytes([e, f, g, h])),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// The header as it travels.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.bits().to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// A whole message with the descriptors that came, or go, with it. Dropping it closes them.
#[derive(Debug)]
pub struct Frame {
    /// Request number and flags; `size` always equals `payload.len()`.
    pub header: Header,
    /// The payload, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
    /// The descriptors, at most [`MAX_FDS`].
    pub fds: Vec<ReceivedFd>,
}

impl Frame {
    /// A frame that is about to be sent.
    pub fn new(request: u32, flags: Flags, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Self {
        let size = payload.len() as u32;
        let fds = fds.into_iter().map(ReceivedFd::from).collect();
        Self { header: Header { request, flags, size }, payload, fds }
    }
}
