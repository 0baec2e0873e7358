//! A block request as a message shows it.

use std::fmt;

use vhost_user_core::block::{BlkOp, BlockRequest};

/// What a message says of a block request.
#[derive(Clone, Copy)]
pub(crate) struct ShownRequest {
    pub(crate) op: BlkOp,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) queue: u16,
}

impl ShownRequest {
    pub(crate) fn new(request: &BlockRequest) -> Self {
        let (op, queue) = (request.op(), request.queue());
        Self { op, queue, offset: request.offset(), length: request.length() }
    }
}

impl fmt::Display for ShownRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, offset, length, queue } = self;
        write!(f, "{op} of {length} bytes at offset {offset}, queue {queue}")
    }
}
