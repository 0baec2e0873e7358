//! Closing files that may keep a thread waiting in `close`.

use std::collections::VecDeque;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::private_fd::PrivateFd;

/// The most threads that wait in `close` for the files of one device.
const MOST_THREADS: usize = 8;

/// The most descriptors that wait to be closed before their front-end has sent too many.
const MOST_UNCLOSED: usize = 64;

/// Closes what a device's front-ends have passed, on threads of its own. A file system that has
/// stopped to answer is told of a `close` and waited for, and so is a peer that takes no data by a
/// socket that lingers. Each device has its own closer, so that what holds up the files of one
/// leaves the others alone.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    closed: Condvar,
    /// A forked child has none of the threads.
    process: u32,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<PrivateFd>,
    /// Each of them has taken one descriptor, or looks for the next.
    threads: usize,
}

impl Default for Inner {
    fn default() -> Self {
        Self { state: Mutex::default(), closed: Condvar::new(), process: process::id() }
    }
}

impl Closer {
    /// Has a descriptor closed, and does not wait for that.
    pub fn close(&self, file: impl Into<PrivateFd>) {
        let file = file.into();
        if self.0.process != process::id() {
            // It is the parent's.
            return;
        }
        let mut state = self.0.lock();
        state.waiting.push_back(file);
        if state.threads >= MOST_THREADS {
            return;
        }
        state.threads += 1;
        drop(state);
        let inner = Arc::clone(&self.0);
        let thread = thread::Builder::new().name("vhost-user close".to_owned());
        if thread.spawn(move || inner.close_all()).is_err() {
            // The descriptor waits for a thread that can be started.
            self.0.lock().threads -= 1;
        }
    }

    /// Returns whether more descriptors wait to be closed than a front-end may leave.
    pub fn is_behind(&self) -> bool {
        self.0.lock().unclosed() > MOST_UNCLOSED
    }

    /// Waits until it is not [behind](Self::is_behind); `false`: it is, after `limit`.
    pub fn catches_up(&self, limit: Duration) -> bool {
        self.wait(MOST_UNCLOSED, limit)
    }

    /// Waits until all is closed; `false`: not all is, after `limit`.
    pub fn finishes(&self, limit: Duration) -> bool {
        self.wait(0, limit)
    }

    fn wait(&self, most: usize, limit: Duration) -> bool {
        let is_over = |state: &mut State| state.unclosed() > most;
        let waited = self.0.closed.wait_timeout_while(self.0.lock(), limit, is_over);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn close_all(&self) {
        while let Some(file) = self.next() {
            drop(file);
        }
    }

    /// The next descriptor to close; with `None` the calling thread is not counted any more.
    fn next(&self) -> Option<PrivateFd> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.threads -= 1;
        }
        self.closed.notify_all();
        next
    }
}

impl State {
    fn unclosed(&self) -> usize {
        self.waiting.len() + self.threads
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(10);

    /// A socket that waits an hour in `close` for its peer, which comes with it.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
        ours.set_nonblocking(true).unwrap();
        loop {
            match ours.write(&[0; 1 << 16]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        (ours.into(), peer)
    }

    #[test]
    fn files_whose_close_does_not_return_hold_nobody_up_and_are_counted() {
        let closer = Closer::default();
        let mut peers = Vec::new();
        let begun = Instant::now();
        for _ in 0..=MOST_UNCLOSED {
            assert!(!closer.is_behind());
            let (file, peer) = lingering();
            closer.close(file);
            peers.push(peer);
        }
        assert!(closer.is_behind());
        assert!(!closer.catches_up(MOMENT));
        // Another device is not concerned.
        let other = Closer::default();
        other.close(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert!(other.finishes(LONG));
        assert!(begun.elapsed() < LONG);
        drop(peers);
        assert!(closer.finishes(LONG));
    }

    #[test]
    fn what_waits_for_a_thread_is_closed_in_the_end() {
        let closer = Closer::default();
        let (files, peers): (Vec<_>, Vec<_>) = (0..MOST_THREADS).map(|_| lingering()).unzip();
        files.into_iter().for_each(|file| closer.close(file));
        let (mut reader, writer) = std::io::pipe().unwrap();
        closer.close(OwnedFd::from(writer));
        drop(peers);
        // The end of the file comes with the last close.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert!(closer.finishes(LONG));
    }
}
