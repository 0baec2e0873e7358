//! Whole frames over a Unix stream socket, and the ways to get one: listening, dialling, or a
//! descriptor handed down. Knows bytes and descriptors, never what a message means.
//!
//! Laws:
//!
//! * A read never goes past the end of the current message, so descriptors always stay with the
//!   message that brought them.
//! * Nothing here blocks outside `poll`, whatever the mode of the shared open file, and every wait
//!   for a front-end also watches a *wake* descriptor (anything that becomes readable; its
//!   content is left alone), so that a stop never waits for a peer.
//! * A message that has begun ends within a deadline on the monotonic clock.

mod backoff;
mod directory_lock;
mod endpoint;
mod error;
mod listener;
mod next;
mod stream;
mod wait;

pub use endpoint::{Endpoint, Source, settled};
pub use error::SocketError;
pub use listener::{ListenOptions, Listener};
pub use next::Next;
pub use stream::{Beside, DEFAULT_DEADLINE, Incoming, Stream};

/// Bytes that a socket's path may have: `sockaddr_un` holds 108 with the terminating zero.
pub const MAX_PATH: usize = 107;
