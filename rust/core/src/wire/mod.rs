//! What travels on the socket, as types: frames, headers, payloads, and the table that says what
//! each message may carry. No I/O and no state.
//!
//! A frame is judged in three passes. Its header and the counts of its payload bytes and
//! descriptors are held against one row of the table in [`message`]; then the payload is read
//! into its type by a [`Reader`] that only shrinks, where left-over bytes are an error; then the
//! connection judges what the values mean. A payload that exists is therefore well formed.

pub mod device_features;
mod dialect;
pub mod features;
mod frame;
pub mod message;
pub mod payload;
mod reader;

pub use crate::sys::received_fd::ReceivedFd;
pub use dialect::{RegionLayout, XenDesigns};
pub use features::ProtocolFeatures;
pub use frame::{Flags, Frame, Header, MAX_FDS, MAX_PAYLOAD};
pub use message::{BackendMessage, FrontendMessage};
pub use payload::{Payload, PayloadError};
pub use reader::{Reader, Writer};
