//! Metrics given away on a thread of their own: by HTTP, or in a file.
//!
//! Whoever scrapes may be slow, silent or hostile. A connection has a time in which everything is to
//! be over, requests a length, and their number a limit: where a new one comes, the oldest goes. No
//! thread but this one waits for any of them.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{self, SocketFlags};

use super::address::Address;
use super::client::{Client, Then};
use crate::error::HostError;
use crate::socket::{ListenOptions, Listener, SocketError};
use crate::sys::eventfd::EventFd;
use crate::sys::private_fd::PrivateFd;

/// Most connections at a time.
const MOST_CLIENTS: usize = 16;

/// Connections that may wait until they are taken.
const BACKLOG: i32 = 16;

/// How often a file is replaced.
const FILE_EVERY: Duration = Duration::from_secs(10);

/// How often a place that somebody else has is tried again.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// How long no connection is taken after one could not be: for want of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(200);

/// Makes the text that is given away.
type Source = Arc<dyn Fn() -> String + Send + Sync>;

/// Why metrics are not given away.
#[derive(Debug)]
pub enum NotExposed {
    /// The Unix socket was not made.
    Socket(SocketError),
    /// Something else of the host.
    Host(HostError),
}

impl From<SocketError> for NotExposed {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

impl From<HostError> for NotExposed {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl NotExposed {
    /// Whether somebody else has the place.
    fn is_taken(&self) -> bool {
        match self {
            Self::Socket(error) => matches!(error, SocketError::InUse { .. }),
            Self::Host(error) => {
                error.raw_os_error() == Some(rustix::io::Errno::ADDRINUSE.raw_os_error())
            }
        }
    }
}

impl fmt::Display for NotExposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => error.fmt(f),
            Self::Host(error) => error.fmt(f),
        }
    }
}

/// Metrics that are given away until this is dropped.
pub struct Exposition {
    address: Address,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is ended with.
struct Stop {
    asked: AtomicBool,
    wake: EventFd,
}

/// Whether to wait for a place that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// That is an error.
    Impatient,
    /// It is tried again until it is free: a former process of the same device still has it.
    Patient,
}

/// Where scrapers come from.
enum Door {
    Unix(Listener),
    Tcp(PrivateFd),
    File(PathBuf),
    /// Not there yet: somebody else has the place.
    Taken(Address),
}

impl Exposition {
    /// Gives away what `source` makes, at `address`, on a thread of this name.
    ///
    /// # Errors
    /// The socket or the file cannot be made.
    pub fn open(
        address: &Address,
        name: &str,
        patience: Patience,
        source: Source,
    ) -> Result<Self, NotExposed> {
        let (door, address) = match Door::open(address, &source) {
            Err(error) if patience == Patience::Patient && error.is_taken() => {
                (Door::Taken(address.clone()), address.clone())
            }
            opened => opened?,
        };
        let event = EventFd::new().map_err(|e| HostError::new("make an event descriptor", e))?;
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), wake: event });
        let asked = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || door.serve(&asked, &source))
            .map_err(|e| HostError::new("start the thread for metrics", e))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// There is something new that a file should have at once.
    pub fn refresh(&self) {
        if matches!(self.address, Address::File(_)) {
            self.stop.wake.signal();
        }
    }

    /// Where they are given away; with the port that the system has chosen in place of 0.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Exposition {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        self.stop.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exposition({})", self.address)
    }
}

impl Door {
    fn open(address: &Address, source: &Source) -> Result<(Self, Address), NotExposed> {
        Ok(match address {
            Address::Unix(path) => {
                let listener = Listener::bind(&ListenOptions::new(path))?;
                (Self::Unix(listener), address.clone())
            }
            Address::Tcp(wanted) => {
                let failed = |e| HostError::new(format!("listen at {wanted}"), e);
                let fd = tcp_listener(wanted).map_err(failed)?;
                let bound = net::getsockname(&fd).map_err(|e| failed(e.into()))?;
                let bound = bound.try_into().unwrap_or(*wanted);
                (Self::Tcp(fd), Address::Tcp(bound))
            }
            Address::File(path) => {
                replace(path, &source())?;
                (Self::File(path.clone()), address.clone())
            }
        })
    }

    fn serve(self, stop: &Stop, source: &Source) {
        match self {
            Self::Unix(listener) => serve_clients(listener.as_fd(), stop, source),
            Self::Tcp(fd) => serve_clients(fd.as_fd(), stop, source),
            Self::Taken(address) => {
                while !stop.wait(&[], Some(TRY_EVERY)) {
                    stop.wake.clear();
                    if let Ok((door, _)) = Self::open(&address, source) {
                        return door.serve(stop, source);
                    }
                }
            }
            Self::File(path) => {
                let mut own = identity(&path);
                while !stop.wait(&[], Some(FILE_EVERY)) {
                    stop.wake.clear();
                    // A disk that is full now may have room next time; the file says how old it is.
                    if replace(&path, &source()).is_ok() {
                        own = identity(&path);
                    }
                }
                // Another process may have put its own there by now.
                if own.is_some() && own == identity(&path) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }
}

impl Stop {
    /// Waits for one of these, or for the end; `true`: that has come.
    fn wait(&self, fds: &[(BorrowedFd<'_>, PollFlags)], limit: Option<Duration>) -> bool {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(fds.iter().map(|&(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        });
        // EINTR is as good as an event: everything is tried without waiting.
        let _ = poll(&mut polled, limit.as_ref());
        self.asked.load(Ordering::Acquire)
    }
}

/// Answers all who connect until the end.
fn serve_clients(listener: BorrowedFd<'_>, stop: &Stop, source: &Source) {
    let mut clients: Vec<Client> = Vec::with_capacity(MOST_CLIENTS);
    let mut pause: Option<Instant> = None;
    loop {
        let now = Instant::now();
        pause = pause.filter(|&until| until > now);
        let first = clients.iter().map(Client::until).chain(pause).min();
        let mut fds: Vec<_> = clients.iter().map(|c| (c.as_fd(), c.waits_for())).collect();
        if pause.is_none() {
            fds.push((listener, PollFlags::IN));
        }
        if stop.wait(&fds, first.map(|until| until.saturating_duration_since(now))) {
            return;
        }
        let now = Instant::now();
        clients
            .retain_mut(|client| client.until() > now && client.go_on(|| source()) == Then::Waits);
        if pause.is_none() {
            match accept(listener) {
                Ok(Some(fd)) => {
                    if clients.len() >= MOST_CLIENTS {
                        clients.remove(0);
                    }
                    clients.push(Client::new(fd, now));
                }
                Ok(None) => {}
                Err(()) => pause = Some(now + PAUSE),
            }
        }
    }
}

/// Takes a connection; `None`: there is none. An error: there is no descriptor for it, or the like.
fn accept(listener: BorrowedFd<'_>) -> Result<Option<PrivateFd>, ()> {
    use rustix::io::Errno;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match PrivateFd::make(|| net::accept_with(listener, flags)) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(_) => Err(()),
    }
}

fn tcp_listener(address: &std::net::SocketAddr) -> io::Result<PrivateFd> {
    let family = match address {
        std::net::SocketAddr::V4(_) => net::AddressFamily::INET,
        std::net::SocketAddr::V6(_) => net::AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || net::socket_with(family, net::SocketType::STREAM, flags, None);
    let fd = PrivateFd::make(make)?;
    // A port is free again at once when a back-end is started anew.
    net::sockopt::set_socket_reuseaddr(&fd, true)?;
    net::bind(&fd, address)?;
    net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// What a file is known by.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Replaces a file as a whole: whoever reads it sees the former text or this one.
fn replace(path: &Path, text: &str) -> Result<(), HostError> {
    let failed = |e| HostError::new(format!("write metrics to {}", path.display()), e);
    let Some(name) = path.file_name() else {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    };
    // Collectors read files by their ending, which this one has not.
    let beside = path.with_file_name(format!(".{}.{}", name.display(), process::id()));
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}
