//! Where connections come from: a socket we listen on, one we dial, or one we were given.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, getpeername, sockopt,
};

use super::backoff::{Backoff, is_shortage};
use super::listener::{check_path, stream_socket, unix_address};
use super::wait::Ready;
use super::{ListenOptions, Listener, MAX_PATH, Next, SocketError, Stream};
use crate::error::HostError;
use crate::sys::closer::Closer;

/// The pause between two calls to a front-end that is not there: at first, and at most. Doubles
/// from one to the other.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the user asked for.
#[derive(Debug)]
pub enum Endpoint {
    /// Make a socket and wait for front-ends.
    Listen(ListenOptions),
    /// Call a front-end that listens at this path, again and again.
    Dial {
        /// The front-end's socket, used exactly as given.
        path: PathBuf,
    },
    /// A socket from our parent: listening, or connected already.
    Inherited(OwnedFd),
}

/// An endpoint that is open.
#[derive(Debug)]
pub enum Source {
    /// Front-ends come to us.
    Listener(Listener),
    /// We go to the front-end.
    Dialer(Dialer),
    /// The one connection that we were given, until it is taken.
    Given(Option<Stream>),
}

/// What came of one call to a front-end that failed and may do better later.
#[derive(Debug)]
struct Later {
    error: SocketError,
    /// The host is to blame, and nobody has been told.
    is_news: bool,
}

/// Calls a front-end until it answers.
#[derive(Debug)]
pub struct Dialer {
    address: SocketAddrUnix,
    path: PathBuf,
    backoff: Backoff,
}

impl Endpoint {
    /// Makes the socket, or checks the one that was handed down. Nothing waits here.
    pub fn open(self) -> Result<Source, SocketError> {
        match self {
            Self::Listen(options) => Listener::bind(&options).map(Source::Listener),
            Self::Dial { path } => Dialer::new(path).map(Source::Dialer),
            Self::Inherited(fd) => inherited(fd),
        }
    }
}

impl Source {
    /// Has `closer` close what is left of the source.
    pub fn close_with(&mut self, closer: &Closer) {
        match self {
            Self::Listener(listener) => listener.close_with(closer),
            Self::Given(Some(stream)) => stream.close_with(closer),
            Self::Dialer(_) | Self::Given(None) => {}
        }
    }

    /// Waits for the next connection, for ever unless `wake` becomes readable.
    pub fn next(&mut self, wake: BorrowedFd<'_>) -> Result<Next, SocketError> {
        match self {
            Self::Listener(listener) => listener.accept(wake),
            Self::Dialer(dialer) => dialer.dial(wake),
            Self::Given(stream) => Ok(stream.take().map_or(Next::Over, Next::Stream)),
        }
    }
}

impl Stream {
    /// Connects to a socket that may not be there yet, trying for as long as `timeout`. A
    /// timeout of 0 tries once.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, SocketError> {
        let until = Instant::now() + timeout;
        let mut dialer = Dialer::new(path.to_owned())?;
        loop {
            match dialer.attempt()? {
                Ok(stream) => return Ok(stream),
                Err(later) if dialer.backoff.not_before() >= until => return Err(later.error),
                Err(_) => dialer.backoff.wait(None)?,
            };
        }
    }
}

/// Returns a path that still leads to the same place when the process has changed its directory: an
/// absolute one, unless no socket's address has room for that.
pub fn settled(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).ok();
    let fits = |path: &PathBuf| path.as_os_str().len() <= MAX_PATH;
    absolute.filter(fits).unwrap_or_else(|| path.to_owned())
}

impl Dialer {
    fn new(path: PathBuf) -> Result<Self, SocketError> {
        check_path(&path)?;
        let address = unix_address(&settled(&path))?;
        Ok(Self { address, path, backoff: Backoff::new(PAUSE.0, PAUSE.1) })
    }

    fn dial(&mut self, wake: BorrowedFd<'_>) -> Result<Next, SocketError> {
        loop {
            // Also a front-end that hangs up at once is not called more often than this.
            if self.backoff.wait(Some(wake))? == Ready::Wake {
                return Ok(Next::Woken);
            }
            match self.attempt()? {
                Ok(stream) => return Ok(Next::Stream(stream)),
                Err(Later { error, is_news: true }) => return Ok(Next::Held(error)),
                Err(_) => {}
            }
        }
    }

    /// One call. The inner error is one that may go away.
    fn attempt(&mut self) -> Result<Result<Stream, Later>, SocketError> {
        match self.call() {
            Ok(stream) => {
                self.backoff.attempted();
                self.backoff.succeeded();
                Ok(Ok(stream))
            }
            Err((step, error)) => {
                self.backoff.failed();
                let described = HostError::new(step, error).into();
                if !may_come_up(error) {
                    return Err(described);
                }
                let is_news = is_shortage(error) && self.backoff.is_news();
                Ok(Err(Later { error: described, is_news }))
            }
        }
    }

    /// A connection, or what could not be done and why.
    fn call(&self) -> Result<Stream, (String, Errno)> {
        let path = self.path.display();
        let fd = stream_socket(SocketFlags::NONBLOCK)
            .map_err(|error| (format!("make a unix socket to connect to {path}"), error))?;
        connect(&fd, &self.address).map_err(|error| (format!("connect to {path}"), error))?;
        Ok(Stream::new(fd))
    }
}

/// Errors that go away when the front-end starts, or gives its new socket its mode, or when the
/// host has again what is short.
fn may_come_up(error: Errno) -> bool {
    let absent = [Errno::NOENT, Errno::CONNREFUSED, Errno::AGAIN, Errno::INTR];
    let forbidden = [Errno::ACCESS, Errno::PERM];
    absent.contains(&error) || forbidden.contains(&error) || is_shortage(error)
}

fn inherited(fd: OwnedFd) -> Result<Source, SocketError> {
    let wrong = |what: String| SocketError::NotUnixStream { what };
    let domain = sockopt::socket_domain(&fd).map_err(|e| match e {
        Errno::NOTSOCK => wrong("no socket at all".to_owned()),
        e => HostError::new("look at the inherited socket", e).into(),
    })?;
    if domain != AddressFamily::UNIX {
        return Err(wrong(format!("address family {}", domain.as_raw())));
    }
    let host = |e: Errno| HostError::new("look at the inherited socket", e);
    let kind = sockopt::socket_type(&fd).map_err(host)?;
    if kind != SocketType::STREAM {
        return Err(wrong(format!("socket type {}", kind.as_raw())));
    }
    // Not to be inherited once more, by a process that a device starts.
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(host)?;
    if sockopt::socket_acceptconn(&fd).map_err(host)? {
        return Listener::from_fd(fd).map(Source::Listener);
    }
    match getpeername(fd.as_fd()) {
        Ok(_) => Ok(Source::Given(Some(Stream::new(fd)))),
        Err(Errno::NOTCONN) => Err(wrong("it neither listens nor is connected".to_owned())),
        Err(error) => Err(host(error).into()),
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
