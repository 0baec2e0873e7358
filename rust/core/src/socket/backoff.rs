//! Pauses between attempts to get a connection.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::wait::{Ready, wait};
use crate::error::HostError;

/// The time between two attempts. It doubles with each that fails, up to a limit.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    pause: Duration,
    not_before: Instant,
    /// Somebody has been told why attempts fail.
    told: bool,
}

impl Backoff {
    /// The pauses begin with `first` and grow to `most`. The first attempt may be made at once.
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, pause: first, not_before: Instant::now(), told: false }
    }

    /// An attempt was made: the next one waits for the pause that is due now.
    pub(super) fn attempted(&mut self) {
        self.not_before = Instant::now() + self.pause;
    }

    /// The attempt failed: the pauses grow.
    pub(super) fn failed(&mut self) {
        self.attempted();
        self.pause = (self.pause * 2).min(self.most);
    }

    /// The attempt succeeded: the pauses begin again with the first.
    pub(super) fn succeeded(&mut self) {
        self.pause = self.first;
        self.told = false;
    }

    /// Whether nobody has been told yet why attempts fail. From now on somebody has.
    pub(super) fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }

    /// When the next attempt may be made.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Waits until the next attempt may be made. `Ready::Wake`: `wake` became readable first.
    pub(super) fn wait(&self, wake: Option<BorrowedFd<'_>>) -> Result<Ready, HostError> {
        wait(None, wake, Some(self.not_before))
    }
}

/// Whether the process or the system lacks something for a moment: descriptors, sockets or
/// memory. What failed for that reason may succeed later with nothing changed but the load.
pub(super) fn is_shortage(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew_after_a_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(20), ms(100));
        let mut pauses = Vec::new();
        for succeeds in [false, false, false, false, true, false] {
            pauses.push(backoff.pause);
            if succeeds { backoff.succeeded() } else { backoff.failed() }
        }
        pauses.push(backoff.pause);
        assert_eq!(pauses, [20, 40, 80, 100, 100, 20, 40].map(ms));
    }

    #[test]
    fn what_holds_up_attempts_is_news_once_until_one_succeeds() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        assert!(backoff.is_news() && !backoff.is_news());
        backoff.failed();
        assert!(!backoff.is_news());
        backoff.succeeded();
        assert!(backoff.is_news());
    }

    #[test]
    fn an_attempt_may_be_made_at_once_and_the_next_after_a_pause() {
        let begun = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(60));
        assert_eq!(backoff.wait(None).unwrap(), Ready::Time);
        backoff.failed();
        assert!(backoff.not_before() >= begun + Duration::from_secs(60));
    }

    #[test]
    fn a_shortage_is_told_from_what_no_time_mends() {
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(is_shortage(error), "{error}");
        }
        for error in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::OPNOTSUPP] {
            assert!(!is_shortage(error), "{error}");
        }
    }
}
