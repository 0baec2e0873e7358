//! Waits that their thread may have to give up, as when a signal has come for it.
//!
//! A thread says once how to ask whether it is to give up ([`asking`]). From then on the waits of
//! the front-end's side ask at intervals, and end with [`io::ErrorKind::Interrupted`].

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a wait goes on before it asks: a signal that another thread was given is heard then.
const INTERVAL: Duration = Duration::from_millis(50);

/// Says whether the calling thread is to give up what it waits for.
pub type Ask = fn() -> bool;

thread_local! {
    static ASK: Cell<Option<Ask>> = const { Cell::new(None) };
    static ASKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What is asked again when this value goes.
struct Former(Option<Ask>);

impl Drop for Former {
    fn drop(&mut self) {
        ASK.set(self.0.take());
    }
}

/// Runs `work`. Its waits on this thread ask `ask`, at least every 50 ms.
pub fn asking<T>(ask: Ask, work: impl FnOnce() -> T) -> T {
    let _former = Former(ASK.replace(Some(ask)));
    ASKED.set(Some(Instant::now()));
    work()
}

/// Runs `work`, whose waits are not given up: what they wait for cannot be left half done.
pub fn whole<T>(work: impl FnOnce() -> T) -> T {
    let _former = Former(ASK.take());
    work()
}

/// Returns how long a wait of at most `left` may go on before [`ask`] is to be called; `None` is
/// without limit.
pub fn slice(left: Option<Duration>) -> Option<Duration> {
    match ASK.get() {
        Some(_) => Some(left.map_or(INTERVAL, |left| left.min(INTERVAL))),
        None => left,
    }
}

/// Asks whether to give up. For a wait that has ended without what it waited for.
///
/// # Errors
/// [`Interrupted`](io::ErrorKind::Interrupted): the thread is to give up.
pub fn ask() -> io::Result<()> {
    let Some(ask) = ASK.get() else { return Ok(()) };
    let gives_up = ask();
    ASKED.set(Some(Instant::now()));
    if gives_up { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
}

/// As [`ask`], unless it was asked a moment ago. For work that hardly waits, and goes on for long.
///
/// # Errors
/// As [`ask`].
pub fn ask_at_times() -> io::Result<()> {
    let is_due = || ASKED.get().is_none_or(|asked| asked.elapsed() >= INTERVAL);
    if ASK.get().is_some() && is_due() { ask() } else { Ok(()) }
}

/// Waits until a descriptor shows one of `events`, or until a point in time: `false` then.
///
/// # Errors
/// The thread is to give up, or the system cannot wait.
pub fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let part = slice(Some(left)).unwrap_or(left);
        let part = Timespec { tv_sec: part.as_secs() as i64, tv_nsec: part.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(fd, events)];
        match poll(&mut fds, Some(&part)) {
            Ok(0) if until <= Instant::now() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => ask()?,
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_says_nothing_waits_in_one_piece() {
        assert_eq!((slice(None), slice(Some(LONG))), (None, Some(LONG)));
        ask().unwrap();
        ask_at_times().unwrap();
    }

    #[test]
    fn waits_are_cut_short_and_ask_until_their_work_is_done() {
        asking(
            || true,
            || {
                assert_eq!((slice(None), slice(Some(LONG))), (Some(INTERVAL), Some(INTERVAL)));
                assert_eq!(slice(Some(Duration::ZERO)), Some(Duration::ZERO));
                assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::Interrupted);
                // It was asked a moment ago.
                ask_at_times().unwrap();
                whole(|| {
                    assert_eq!(slice(Some(LONG)), Some(LONG));
                    ask().unwrap();
                });
                // Work within, with a question of its own.
                asking(|| false, || ask().unwrap());
                ask().unwrap_err();
            },
        );
        ask().unwrap();
    }
}
