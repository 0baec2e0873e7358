//! Safe wrappers over system calls. Mechanism only: what to do with them is decided elsewhere.

pub mod block_device;
pub mod closer;
pub mod credentials;
pub mod event_kind;
pub mod eventfd;
pub mod fault_handlers;
pub mod fd_kind;
mod fd_table;
pub mod file_system;
pub mod fork;
pub mod guard;
mod guard_table;
pub mod interrupt;
pub mod io;
pub mod lock;
pub mod lock_holder;
mod loss_flag;
pub mod mmap;
pub mod no_signal_write;
pub mod pipe_end;
pub mod private_fd;
pub mod received_fd;
pub mod scratch;
pub mod shared;
pub mod shared_copy;
pub mod sigbus;
mod snapshot;
pub mod userfault;

/// The atomics of the files that a model checker's tests compile with their own.
mod atomics {
    pub(super) use std::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
    };
}

use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns the name under which this process can open the file behind a descriptor once more.
pub fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
