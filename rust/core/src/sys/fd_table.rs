//! Descriptors that a forked child is not to have.
//!
//! A fork shares every open file: a child would hold a connection open that its parent closes, keep
//! the lock of an image, and could map the memory of a guest. Closing them on `exec` is no help to
//! a child that does not call it. So each such descriptor is noted here by its number, and a child
//! puts `/dev/null` in the place of all of them before anything else happens in it. The numbers
//! stay taken, so that whatever still names them there reaches nobody else's file.
//!
//! A handler in the child reads the table: it is made of atomics, and nothing that is called there
//! locks or allocates.
#![allow(unsafe_code)] // Replaces descriptors by number.

use std::cell::Cell;
use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Numbers that can be noted: as many as Linux lets a process have (`fs.nr_open`), unless somebody
/// raised that.
const NUMBERS: usize = 1 << 20;
const BITS: usize = u64::BITS as usize;

static NOTED: [AtomicU64; NUMBERS / BITS] = [const { AtomicU64::new(0) }; NUMBERS / BITS];
/// Words of the table that were ever used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Threads that are making descriptors which are not noted yet.
static MAKING: AtomicU32 = AtomicU32::new(0);
/// Threads that close descriptors which are not noted any more.
static CLOSING: AtomicU32 = AtomicU32::new(0);
/// Threads that fork.
static FORKING: AtomicU32 = AtomicU32::new(0);

/// How long each look at the other side waits.
const PAUSE: Duration = Duration::from_micros(100);
/// How often a fork looks whether descriptors are being made. A file system that does not answer
/// to an `open` must not hold it up: what is opened so late is the child's too.
const LOOKS: u32 = 1000;
/// How often a fork looks whether descriptors are being closed. The kernel takes a number away at
/// once, and may keep the thread for as long as the file's server or peer does not answer: by then
/// a child gets nothing of it.
const LOOKS_AT_CLOSING: u32 = 50;

/// Notes a descriptor. It is in use until [`forget`].
pub(super) fn note(fd: RawFd) {
    if let Some((word, bit)) = place(fd) {
        USED.fetch_max(word + 1, Ordering::Relaxed);
        NOTED[word].fetch_or(bit, Ordering::SeqCst);
    }
}

/// Forgets a descriptor, which is about to be closed.
fn forget(fd: RawFd) {
    if let Some((word, bit)) = place(fd) {
        NOTED[word].fetch_and(!bit, Ordering::SeqCst);
    }
}

fn place(fd: RawFd) -> Option<(usize, u64)> {
    let number = usize::try_from(fd).ok().filter(|&number| number < NUMBERS)?;
    Some((number / BITS, 1 << (number % BITS)))
}

thread_local! {
    static IS_CHANGING: Cell<bool> = const { Cell::new(false) };
}

/// A thread counts among those that are making, or closing, descriptors while it has this.
struct Changing(&'static AtomicU32);

impl Drop for Changing {
    fn drop(&mut self) {
        IS_CHANGING.set(false);
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Changing {
    fn begin(threads: &'static AtomicU32) -> Self {
        loop {
            // Pairs with a fork that counts itself and then looks here: one sees the other.
            threads.fetch_add(1, Ordering::SeqCst);
            if FORKING.load(Ordering::SeqCst) == 0 {
                IS_CHANGING.set(true);
                return Self(threads);
            }
            threads.fetch_sub(1, Ordering::SeqCst);
            thread::sleep(PAUSE);
        }
    }
}

/// Runs `make`, which makes descriptors and notes them. A fork comes before or after it, unless it
/// takes long.
pub(super) fn whole<T>(make: impl FnOnce() -> T) -> T {
    let _making = (!IS_CHANGING.get()).then(|| Changing::begin(&MAKING));
    make()
}

/// Forgets a descriptor and closes it. A fork comes before or after it, or when the kernel has taken
/// the number away and only its file keeps the thread.
pub(super) fn close(fd: OwnedFd) {
    let _closing = (!IS_CHANGING.get()).then(|| Changing::begin(&CLOSING));
    forget(fd.as_raw_fd());
    drop(fd);
}

/// Before a fork: waits until no descriptors are being made or closed.
pub(super) fn before_fork() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    wait_for_changes();
}

/// Waits for those who make or close descriptors; returns how often it found some.
fn wait_for_changes() -> u32 {
    for looks in 0..LOOKS {
        let is_closing = looks < LOOKS_AT_CLOSING && CLOSING.load(Ordering::SeqCst) > 0;
        if !is_closing && MAKING.load(Ordering::SeqCst) == 0 {
            return looks;
        }
        thread::sleep(PAUSE);
    }
    LOOKS
}

/// After a fork, in the parent.
pub(super) fn after_fork_in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

/// In a forked child: puts `/dev/null` in the place of what was noted, and forgets it. It makes
/// system calls and uses atomics, nothing else.
pub(super) fn replace_all_in_child() {
    // The other threads are not here.
    FORKING.store(0, Ordering::SeqCst);
    MAKING.store(0, Ordering::SeqCst);
    CLOSING.store(0, Ordering::SeqCst);
    // SAFETY: the path ends with a zero.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    for (word, noted) in NOTED.iter().enumerate().take(USED.load(Ordering::Relaxed)) {
        let mut bits = noted.swap(0, Ordering::SeqCst);
        while bits != 0 {
            replace((word * BITS) as c_int + bits.trailing_zeros() as c_int, null);
            bits &= bits - 1;
        }
    }
    if null >= 0 {
        // SAFETY: it was opened above and is used by nobody.
        unsafe { libc::close(null) };
    }
}

/// Puts `null` in the place of `fd`; if there is none, `fd` is closed.
fn replace(fd: c_int, null: c_int) {
    // SAFETY: whoever noted the descriptor owned it, and takes it for the parent's in this process.
    if unsafe { libc::dup3(null, fd, libc::O_CLOEXEC) } < 0 {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Has a thread count itself in `threads` until the sender that is returned is dropped.
    fn changing(threads: &'static AtomicU32) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
        let (go_on, waits) = mpsc::channel::<()>();
        let (begun, is_begun) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _changing = Changing::begin(threads);
            begun.send(()).unwrap();
            let _ = waits.recv();
        });
        is_begun.recv().unwrap();
        (go_on, thread)
    }

    #[test]
    fn a_close_that_takes_long_does_not_hold_up_a_fork_for_its_whole_limit() {
        let (go_on, thread) = changing(&CLOSING);
        let looks = wait_for_changes();
        drop(go_on);
        thread.join().unwrap();
        assert!((LOOKS_AT_CLOSING..LOOKS).contains(&looks), "{looks}");
    }
}
