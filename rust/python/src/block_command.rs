//! Block operations that have no data.

use vhost_user_core::block::{BlkOp, BlockRequest, ByteRange};

/// An operation that has no data, and a method of its own: flush, discard or write zeroes.
pub(crate) struct Command {
    pub(crate) op: BlkOp,
    pub(crate) ranges: Vec<ByteRange>,
    pub(crate) unmap: bool,
}

impl Command {
    /// Copies what the request says; `None` if it is about data.
    pub(crate) fn of(request: &BlockRequest) -> Option<Self> {
        let op = request.op();
        let command = matches!(op, BlkOp::Flush | BlkOp::Discard | BlkOp::WriteZeroes);
        command.then(|| Self { op, ranges: request.ranges().to_vec(), unmap: request.unmap() })
    }
}
