//! Writing to a descriptor that somebody else chose, without the signals that it can raise.
//!
//! A write that fails may raise a signal on the thread besides, whose default answer ends the
//! process: SIGPIPE on a pipe or a socket that nobody reads, SIGXFSZ on a file at this process's
//! limit of size, SIGTTOU on a terminal that keeps jobs in the background from it. What the program
//! does about them is its own business, and its children inherit a thread's mask: so they are held
//! back for the one call, and what it raised is taken away before the mask is what it was.
#![allow(unsafe_code)] // Signal masks.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr;

/// The signals that a write can raise.
const RAISED: [c_int; 3] = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU];

/// Writes `bytes`, and raises nothing.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let pending = pending();
    let mask = change_mask(libc::SIG_BLOCK, &set(&RAISED));
    let written = rustix::io::write(fd, bytes);
    if let Some(raised) = written.err().and_then(raised)
        && !holds(&pending, raised)
    {
        take(raised);
    }
    change_mask(libc::SIG_SETMASK, &mask);
    Ok(written?)
}

/// Returns the signal that comes with an error. SIGTTOU comes with none: the write succeeds if it
/// is held back.
fn raised(error: rustix::io::Errno) -> Option<c_int> {
    match error {
        rustix::io::Errno::PIPE => Some(libc::SIGPIPE),
        rustix::io::Errno::FBIG => Some(libc::SIGXFSZ),
        _ => None,
    }
}

fn set(signals: &[c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable; the call fills it in and cannot fail.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was just filled in.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: a valid set, and the number of a signal.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn holds(set: &libc::sigset_t, signal: c_int) -> bool {
    // SAFETY: a valid set, and the number of a signal.
    unsafe { libc::sigismember(set, signal) == 1 }
}

/// Returns the signals that are held back and wait for this thread or for the process.
fn pending() -> libc::sigset_t {
    let mut pending = set(&[]);
    // SAFETY: the set is writable; the call cannot fail otherwise.
    unsafe { libc::sigpending(&raw mut pending) };
    pending
}

/// Changes this thread's mask; returns what it was.
fn change_mask(how: c_int, by: &libc::sigset_t) -> libc::sigset_t {
    let mut before = set(&[]);
    // SAFETY: both sets are valid; the call cannot fail with a `how` that exists.
    unsafe { libc::pthread_sigmask(how, by, &raw mut before) };
    before
}

/// Takes a signal away that waits for this thread.
fn take(signal: c_int) {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid set and time; what is known of the signal is not asked for.
    unsafe { libc::sigtimedwait(&set(&[signal]), ptr::null_mut(), &raw const now) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// Says whether a SIGPIPE was delivered in this process.
    fn heard() -> Arc<AtomicBool> {
        let heard = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(libc::SIGPIPE, Arc::clone(&heard)).unwrap();
        heard
    }

    #[test]
    fn a_write_that_nobody_reads_is_an_error_and_raises_nothing() {
        let heard = heard();
        let (reader, pipe) = rustix::pipe::pipe().unwrap();
        let (peer, socket) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        drop((reader, peer));
        for fd in [pipe, socket] {
            let error = write(fd.as_fd(), &[1]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
        }
        assert!(!heard.load(Ordering::SeqCst));
        assert!(!holds(&pending(), libc::SIGPIPE));
    }

    #[test]
    fn the_mask_and_a_signal_that_waited_before_are_left_as_they_were() {
        let former = change_mask(libc::SIG_BLOCK, &set(&[libc::SIGPIPE, libc::SIGUSR2]));
        // SAFETY: sends a signal, which is held back, to this thread.
        unsafe { libc::raise(libc::SIGPIPE) };
        let (reader, pipe) = rustix::pipe::pipe().unwrap();
        drop(reader);
        assert!(write(pipe.as_fd(), &[1]).is_err());
        assert!(holds(&pending(), libc::SIGPIPE));
        take(libc::SIGPIPE);
        let mask = change_mask(libc::SIG_SETMASK, &former);
        let held = [libc::SIGPIPE, libc::SIGUSR2, libc::SIGTTOU].map(|s| holds(&mask, s));
        assert_eq!(held, [true, true, false]);
    }
}
