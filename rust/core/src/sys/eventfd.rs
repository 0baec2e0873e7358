//! Event descriptors: our own, and those that somebody else holds too.
#![allow(unsafe_code)] // Linux's asynchronous I/O, for which there is no safe wrapper.

use std::ffi::{c_long, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

/// An eventfd of our own.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Returns a non-blocking eventfd with counter 0.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// Makes it readable.
    pub fn signal(&self) {
        signal(self.0.as_fd());
    }

    /// Makes it unreadable again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Signals eventfds that others hold too, and never waits for them.
///
/// A `write` to an eventfd waits while its counter is full, unless the open file is non-blocking:
/// and that is a flag of the open file, which everybody who has it may change at any time. The
/// kernel's own signal, which asynchronous I/O gives when a call has ended, adds to the counter if
/// there is room and never waits. So this has the kernel read nothing of /dev/null and signal the
/// eventfd. Linux, io_submit(2): `IOCB_FLAG_RESFD`.
#[derive(Debug)]
pub struct EventSignaller {
    /// None where the kernel has no asynchronous I/O for us.
    context: Option<Context>,
}

/// A context for asynchronous I/O, with a file that has nothing to read.
#[derive(Debug)]
struct Context {
    id: c_ulong,
    nothing: BorrowedFd<'static>,
}

/// A file that has nothing to read, opened once for the process: with its first back-end, and not
/// with a front-end's first call descriptor.
pub fn nothing() -> io::Result<BorrowedFd<'static>> {
    static FILE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = FILE.get() {
        return Ok(file.as_fd());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    Ok(FILE.get_or_init(|| file).as_fd())
}

/// Ended calls that a context keeps before they have to be looked at.
const KEPT: usize = 128;

/// How often the ended calls are forgotten to make room for one more: other threads may take it.
const TRIES: usize = 8;

/// What a context is told to do. Linux, io_submit(2).
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

/// What a context says of an ended call. Linux, io_getevents(2).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ended([u64; 4]);

const READ: u16 = 0;
const SIGNAL: u32 = 1;

impl Default for EventSignaller {
    fn default() -> Self {
        Self { context: Context::new().ok() }
    }
}

impl EventSignaller {
    /// Adds 1 to an eventfd. A full one is signalled already.
    pub fn signal(&self, fd: BorrowedFd<'_>) {
        let signalled = self.context.as_ref().is_some_and(|context| context.signal(fd));
        // The look and the write are two calls: this is for kernels that offer nothing better.
        if !signalled && is_writable(fd) {
            signal(fd);
        }
    }
}

impl Context {
    fn new() -> io::Result<Self> {
        let nothing = nothing()?;
        let mut id: c_ulong = 0;
        // SAFETY: io_setup fills in `id`, which it wants to be zero.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, KEPT as c_long, &raw mut id) };
        if made == 0 { Ok(Self { id, nothing }) } else { Err(io::Error::last_os_error()) }
    }

    /// `false`: the kernel did not take the call.
    fn signal(&self, fd: BorrowedFd<'_>) -> bool {
        let mut block = ControlBlock {
            opcode: READ,
            file: self.nothing.as_raw_fd().cast_unsigned(),
            flags: SIGNAL,
            event: fd.as_raw_fd().cast_unsigned(),
            ..ControlBlock::default()
        };
        for _ in 0..TRIES {
            let blocks = [&raw mut block];
            // SAFETY: one control block is passed, which lives as long as the call, and which the
            // kernel does not keep; it names no memory to read to.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, blocks.as_ptr()) };
            if taken == 1 {
                return true;
            }
            if io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
                return false;
            }
            self.forget_ended();
        }
        false
    }

    /// Makes room for more calls.
    #[cold]
    fn forget_ended(&self) {
        let mut ended = [Ended::default(); KEPT];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `ended` has room for as many as are asked for.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0,
                KEPT as c_long,
                ended.as_mut_ptr(),
                &raw const now,
            )
        };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nobody else has this context, and a forked child, which has none, is told so.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

/// Adds 1 to an eventfd that nobody else has made full, or blocking.
pub fn signal(fd: BorrowedFd<'_>) {
    let _ = rustix::io::retry_on_intr(|| rustix::io::write(fd, &1_u64.to_ne_bytes()));
}

/// Returns whether a write would not wait.
fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(fd: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(fd, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn each_signal_adds_one() {
        let signaller = EventSignaller::default();
        assert!(signaller.context.is_some(), "this kernel has asynchronous I/O");
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        (0..3 * KEPT).for_each(|_| signaller.signal(fd.as_fd()));
        assert_eq!(counter(&fd), 3 * KEPT as u64);
    }

    #[test]
    fn a_full_counter_of_a_blocking_file_holds_nobody_up() {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        EventSignaller::default().signal(fd.as_fd());
        EventSignaller { context: None }.signal(fd.as_fd());
        assert!(counter(&fd) >= u64::MAX - 1);
    }
}
