//! Safe wrappers over system calls. Mechanism only: what to do with them is decided elsewhere.

pub mod credentials;
pub mod eventfd;
pub mod fork;
pub mod guard;
pub mod io;
mod keep;
pub mod kind;
pub mod lock;
pub mod mmap;
pub mod quiet;
pub mod scratch;
pub mod shared;
pub mod sigbus;
