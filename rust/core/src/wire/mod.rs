//! What travels on the socket, as types: frames, headers, payloads, and the table that says what
//! each message may carry. No I/O and no state.

mod frame;

pub use frame::{Flags, Frame, Header, MAX_FDS, MAX_PAYLOAD};
