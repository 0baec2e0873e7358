//! Forks of this process, which have none of its threads and none of the guests' memory.
#![allow(unsafe_code)] // Registers a handler with the C library.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::guard;

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Returns how many forks lie between this process and the first that shared memory was mapped in.
/// What was made at another number belongs to an ancestor.
#[inline]
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Has forked children counted and their part in shared memory replaced. Once is enough.
pub(super) fn install() -> io::Result<()> {
    static RESULT: OnceLock<i32> = OnceLock::new();
    // SAFETY: the handler does nothing that is forbidden in a child of a process with threads.
    let result = RESULT.get_or_init(|| unsafe { pthread_atfork(None, None, Some(in_child)) });
    if *result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(*result)) }
}

unsafe extern "C" {
    // Missing from the `libc` crate for Linux.
    fn pthread_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
    ) -> libc::c_int;
}

/// Runs in a forked child. It makes system calls and uses atomics, nothing else.
unsafe extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    guard::replace_all_in_child();
}
