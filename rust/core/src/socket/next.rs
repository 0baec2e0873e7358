//! What comes of waiting for a connection.

use super::{SocketError, Stream};

/// The next connection of a [`Source`](super::Source), or why the wait for it has ended.
#[derive(Debug)]
pub enum Next {
    /// A front-end.
    Stream(Stream),
    /// The wake descriptor became readable.
    Woken,
    /// The host lacks something that a connection needs, such as descriptors, or forbids it. Wait
    /// again: the next wait pauses between attempts, and says nothing of this until a connection
    /// has come.
    Held(SocketError),
    /// The connection that was handed down has been taken; there is no other.
    Over,
}
