//! Safe wrappers over system calls. Mechanism only: what to do with them is decided elsewhere.

pub mod credentials;
pub mod eventfd;
pub mod fault_handlers;
pub mod fd_kind;
pub mod fork;
pub mod guard;
pub mod io;
pub mod lock;
pub mod mmap;
pub mod no_signal_write;
pub mod scratch;
pub mod shared;
pub mod sigbus;
mod snapshot;

// The former name, until nobody uses it.
pub use no_signal_write as quiet;
