//! Forks of this process, which have none of its threads, none of the guests' memory and none of
//! the descriptors that lead there.
#![allow(unsafe_code)] // Registers a handler with the C library.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{fd_table, guard};

type Handler = unsafe extern "C" fn();

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Returns how many forks lie between this process and the first that shared memory was mapped in.
/// What was made at another number belongs to an ancestor.
#[inline]
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Has forked children counted, and their part in shared memory and private descriptors replaced.
/// Once is enough.
pub(super) fn install() -> io::Result<()> {
    static RESULT: OnceLock<i32> = OnceLock::new();
    let register = || {
        let (before, in_parent) = (Some(before as Handler), Some(in_parent as Handler));
        // SAFETY: the handler in the child does nothing that is forbidden in a child of a process
        // with threads, and no handler unwinds.
        unsafe { pthread_atfork(before, in_parent, Some(in_child)) }
    };
    let result = RESULT.get_or_init(register);
    if *result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(*result)) }
}

unsafe extern "C" {
    // Missing from the `libc` crate for Linux.
    fn pthread_atfork(
        prepare: Option<Handler>,
        parent: Option<Handler>,
        child: Option<Handler>,
    ) -> libc::c_int;
}

unsafe extern "C" fn before() {
    fd_table::before_fork();
}

unsafe extern "C" fn in_parent() {
    fd_table::after_fork_in_parent();
}

/// Runs in a forked child. It makes system calls and uses atomics, nothing else.
unsafe extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    guard::replace_all_in_child();
    fd_table::replace_all_in_child();
}
