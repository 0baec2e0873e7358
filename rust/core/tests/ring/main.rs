//! The split virtqueue and guest memory, tried by drivers that share no code with them.
//!
//! The driver's side here reads and writes guest memory through `vm-memory`, over the same files
//! that the code under test maps for itself.
#![allow(unreachable_pub)] // Nothing of a test binary is reachable from elsewhere.

mod double_fetch;
mod driver;
mod guest;
mod judge;
mod malformed;
mod memory;
mod model;
mod notifications;
mod oracle;
mod packed;
mod positions;
mod translations;
mod unusual;
