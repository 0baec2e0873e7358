//! A listening socket with a name in the file system.
//!
//! A name appears in one step, with its mode and group set and somebody behind it: the socket is
//! bound under a temporary name in the same directory, then moved to its own. The move never
//! replaces anything; what is in the way is looked at first (see [`make_way`]). Back-ends that start
//! at once, or end as another one starts, do this one after the other: names are given and taken
//! away under the [directory's lock](DirectoryLock).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io, process};

use rustix::event::PollFlags;
use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, chmod, fchmod, renameat_with, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::backoff::{Backoff, is_shortage};
use super::directory_lock::DirectoryLock;
use super::wait::{Ready, wait};
use super::{MAX_PATH, Next, SocketError, Stream};
use crate::error::HostError;
use crate::sys::closer::Closer;
use crate::sys::fd_path;
use crate::sys::private_fd::PrivateFd;
use crate::wire::ReceivedFd;

/// Connections that may wait. One front-end is served at a time; the others queue up here.
const BACKLOG: i32 = 128;

/// Times that something new may stand in the way before we give up.
const MAX_ATTEMPTS: u32 = 16;

/// How long accepting pauses at first, and at most, while something is short or forbidden. The
/// connection that waits stays readable, so without a pause this would spin.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// The socket's name, used exactly as given.
    pub path: PathBuf,
    /// Permission bits of the file.
    pub mode: u32,
    /// The file's group, by number; `None` leaves it to the system.
    pub group: Option<u32>,
}

impl ListenOptions {
    /// For `path`, open to its owner alone.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: 0o600, group: None }
    }
}

/// A listening Unix stream socket. Dropping it removes its file if that is still its own.
#[derive(Debug)]
pub struct Listener {
    fd: ReceivedFd,
    file: Option<BoundFile>,
    backoff: Backoff,
}

/// The name that we made, and how to know it again.
#[derive(Debug)]
struct BoundFile {
    /// As it was given. It may lead elsewhere by now: a relative one does, once the process has
    /// changed its directory.
    path: PathBuf,
    directory: PrivateFd,
    id: (u64, u64),
    owner: u32,
}

impl Listener {
    /// Makes a socket at `options.path` and listens.
    ///
    /// A socket at that path where nobody answers is replaced. Errors: somebody answers
    /// ([`SocketError::InUse`]), something that is no socket is there, a symbolic link included
    /// ([`SocketError::NotASocket`]), the path does not fit ([`SocketError::BadPath`]).
    pub fn bind(options: &ListenOptions) -> Result<Self, SocketError> {
        check_path(&options.path)?;
        let temporary = Temporary::beside(&options.path)?;
        let fd = stream_socket(SocketFlags::NONBLOCK)
            .map_err(|e| HostError::new("make a unix socket", e))?;
        let (path, mode) = (options.path.display(), options.mode);
        // The kernel gives the file the socket's own mode, less the umask: nothing is open to
        // others even before `chmod`.
        fchmod(&fd, Mode::from_raw_mode(0o600))
            .map_err(|e| HostError::new(format!("close socket {path} to others"), e))?;
        bind(&fd, &temporary.address()?)
            .map_err(|e| HostError::new(format!("bind socket {path}"), e))?;
        if let Some(group) = options.group {
            lchown(&temporary.path, None, Some(group))
                .map_err(|e| HostError::new(format!("give socket {path} to group {group}"), e))?;
        }
        chmod(&temporary.path, Mode::from_raw_mode(mode))
            .map_err(|e| HostError::new(format!("give socket {path} mode {mode:#o}"), e))?;
        listen(&fd, BACKLOG).map_err(|e| HostError::new(format!("listen at socket {path}"), e))?;
        let look = || look_at(&options.path);
        let id = identity(CWD, &temporary.path).map_err(|e| HostError::new(look(), e))?;
        let directory = temporary.directory.try_clone().map_err(|e| HostError::new(look(), e))?;
        temporary.move_to(&options.path)?;
        let (path, owner) = (options.path.clone(), process::id());
        let file = BoundFile { path, directory, id, owner };
        Ok(Self { fd: fd.into(), file: Some(file), backoff: Backoff::new(PAUSE.0, PAUSE.1) })
    }

    /// Takes a listening socket that somebody else made. It becomes non-blocking (in every
    /// process that shares it): else a connection that vanishes, or that another process takes,
    /// between `poll` and `accept` would block us for ever.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|e| HostError::new("make a listening socket non-blocking", e))?;
        Ok(Self { fd: fd.into(), file: None, backoff: Backoff::new(PAUSE.0, PAUSE.1) })
    }

    /// Waits for a connection, for ever unless `wake` becomes readable.
    ///
    /// While descriptors or memory are short it pauses and tries again, until there are some.
    pub fn accept(&mut self, wake: BorrowedFd<'_>) -> Result<Next, SocketError> {
        loop {
            if self.backoff.wait(Some(wake))? == Ready::Wake
                || wait(Some((self.fd.as_fd(), PollFlags::IN)), Some(wake), None)? == Ready::Wake
            {
                return Ok(Next::Woken);
            }
            let error = match PrivateFd::make(|| accept_with(&self.fd, SocketFlags::CLOEXEC)) {
                Ok(fd) => {
                    self.backoff.succeeded();
                    return Ok(Next::Stream(Stream::new(fd)));
                }
                Err(error) if concerns_one_connection(error) => continue,
                Err(error) => error,
            };
            let described = HostError::new("accept a connection", error).into();
            if !is_shortage(error) && !is_forbidden(error) {
                return Err(described);
            }
            self.backoff.failed();
            if self.backoff.is_news() {
                return Ok(Next::Held(described));
            }
        }
    }

    /// Has `closer` close the socket: what front-ends have sent that wait goes with it, and with it
    /// the descriptors in there.
    pub fn close_with(&mut self, closer: &Closer) {
        self.fd.close_with(closer);
    }

    /// The socket's name, if this listener made it.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for BoundFile {
    fn drop(&mut self) {
        let Some(name) = self.path.file_name() else { return };
        // A forked child owns a copy of this value, but not the name.
        if self.owner != process::id() {
            return;
        }
        let _lock = DirectoryLock::take(self.directory.as_fd());
        let ours = identity(&self.directory, name).is_ok_and(|found| found == self.id);
        if ours {
            let _ = unlinkat(&self.directory, name, AtFlags::empty());
        }
    }
}

/// A name beside the socket's own, removed on drop unless it was moved.
struct Temporary {
    path: PathBuf,
    directory: PrivateFd,
    name: String,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self, SocketError> {
        use rustix::fs::{OFlags, open};
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = PrivateFd::make(|| open(directory, flags, Mode::empty()))
            .map_err(|e| HostError::new(format!("open {}", directory.display()), e))?;
        let name = unused_name();
        Ok(Self { path: directory.join(&name), directory: fd, name })
    }

    /// Where to bind. The temporary name may be longer than the socket's own and no longer fit;
    /// then the way to it leads through the directory's descriptor.
    fn address(&self) -> Result<SocketAddrUnix, SocketError> {
        let short = if self.path.as_os_str().len() <= MAX_PATH {
            self.path.clone()
        } else {
            Path::new(&fd_path(self.directory.as_fd())).join(&self.name)
        };
        unix_address(&short)
    }

    /// Gives the socket its own name, after whatever is dead has made way.
    fn move_to(&self, path: &Path) -> Result<(), SocketError> {
        let _lock = DirectoryLock::take(self.directory.as_fd());
        for _ in 0..MAX_ATTEMPTS {
            match move_no_replace(&self.path, path) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => make_way(path)?,
                Err(error) => {
                    let what = format!("give socket {} its name", path.display());
                    return Err(HostError::new(what, error).into());
                }
            }
        }
        Err(SocketError::InUse { path: path.to_owned() })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the socket at `path` if nobody answers there.
///
/// Between the first look and the removal somebody else may have put a living socket there. So
/// the file is first moved aside, asked again under its new name, and moved back if it answers.
fn make_way(path: &Path) -> Result<(), SocketError> {
    let in_use = || SocketError::InUse { path: path.to_owned() };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(HostError::new(look_at(path), error).into()),
    }
    let aside = Temporary::beside(path)?;
    match answers(&unix_address(path)?) {
        Ok(true) => return Err(in_use()),
        Ok(false) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(HostError::new(look_at(path), error).into()),
    }
    match move_no_replace(path, &aside.path) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => {
            let what = format!("replace stale socket {}", path.display());
            return Err(HostError::new(what, error).into());
        }
    }
    if answers(&aside.address()?).unwrap_or(true) {
        let _ = move_no_replace(&aside.path, path);
        return Err(in_use());
    }
    Ok(())
}

/// Whether somebody listens at the address.
fn answers(address: &SocketAddrUnix) -> Result<bool, Errno> {
    let fd = stream_socket(SocketFlags::NONBLOCK)?;
    match connect(&fd, address) {
        // `AGAIN`: so many callers wait there already that the queue is full. `PROTOTYPE`: a
        // socket of another kind.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves a file, failing with `EXIST` rather than replacing another.
fn move_no_replace(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that cannot rename so (NFS for one) can still link.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::link(from, to)?;
            rustix::fs::unlink(from)
        }
        result => result,
    }
}

/// Errors of `accept` that are over with the connection that they are about: it went away, or
/// another process took it.
fn concerns_one_connection(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO)
}

/// Errors of `accept` by which the system's rules forbid a connection, for as long as they stand.
fn is_forbidden(error: Errno) -> bool {
    matches!(error, Errno::PERM | Errno::ACCESS)
}

/// Refuses a path that no socket address can hold.
pub(super) fn check_path(path: &Path) -> Result<(), SocketError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let why = match bytes.len() {
        0 => "is empty",
        1..=MAX_PATH if bytes.contains(&0) => "has a zero byte in it",
        1..=MAX_PATH => return Ok(()),
        _ => "is too long",
    };
    Err(SocketError::BadPath { path: path.to_owned(), why })
}

pub(super) fn unix_address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    check_path(path)?;
    Ok(SocketAddrUnix::new(path).map_err(|e| HostError::new(look_at(path), e))?)
}

pub(super) fn stream_socket(flags: SocketFlags) -> Result<PrivateFd, Errno> {
    let flags = flags | SocketFlags::CLOEXEC;
    PrivateFd::make(|| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None))
}

/// What tells the file at `path`, seen from `directory`, from all others.
fn identity(directory: impl AsFd, path: impl rustix::path::Arg) -> Result<(u64, u64), Errno> {
    let found = statat(directory, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((found.st_dev, found.st_ino))
}

fn look_at(path: &Path) -> String {
    format!("look at socket {}", path.display())
}

/// A file name that nobody else uses: process, time and a counter.
fn unused_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{SystemTime, UNIX_EPOCH};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.subsec_nanos());
    format!(".{:x}-{nanos:x}-{count:x}.sock", process::id())
}

#[cfg(test)]
#[path = "listener_tests.rs"]
pub(in crate::socket) mod tests;
