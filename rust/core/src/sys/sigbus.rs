//! The handler of SIGBUS: faults in shared mappings are answered, everything else goes to whoever
//! handled the signal before.
//!
//! Whoever installs a handler later is above this one and gets the faults first. So the next
//! mapping installs it again, with the newcomer below. Such a newcomer may hand a signal on to
//! what it knows to be below itself, and that is this handler: the second time around, the signal
//! goes to who was there before all, and after that it is the system's.
#![allow(unsafe_code)] // Installs and calls signal handlers.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::guard;

type Handler = extern "C" fn(c_int);
type InfoHandler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Who handled the signal before this handler came for the first time, and for the last time. Null
/// before that; never freed, as a handler may be reading.
static FIRST: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static LATEST: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// The thread that hands a signal on, 0 if none does, and how often it has come back.
static HANDING_ON: AtomicI32 = AtomicI32::new(0);
static RETURNS: AtomicU32 = AtomicU32::new(0);

/// Puts the handler on top, if it is not there.
pub(super) fn install() -> io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let present = present()?;
    let address = handle as *const () as usize;
    if present.sa_sigaction == address {
        return Ok(());
    }
    let previous = Box::into_raw(Box::new(present));
    let _ = FIRST.compare_exchange(ptr::null_mut(), previous, Ordering::Release, Ordering::Relaxed);
    LATEST.store(previous, Ordering::Release);
    // A handler that is called by this one may raise the signal again and expect to be left: so
    // the signal is not held back meanwhile.
    set(address, libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER)
}

/// Lets the signal through on this thread: a fault while it is held back ends the process.
pub fn unblock() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` makes a set out of writable memory, the others take that set; the
    // former mask is not asked for. None of them can fail with these arguments.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
    }
}

/// The handler. Calls nothing that locks or allocates; `errno` stays as it was.
extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the C library gives each thread's own `errno`.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; it is an integer of this thread.
    let saved = unsafe { errno.read() };
    // SAFETY: with SA_SIGINFO the system passes a filled-in structure.
    let info_read = unsafe { info.read() };
    let fault = is_fault(info_read.si_code);
    // SAFETY: for a fault the system has filled in the address.
    let answered = fault && guard::replace(unsafe { info_read.si_addr() } as usize);
    if !answered {
        hand_on(signal, info, context, fault);
    }
    // SAFETY: as for the read.
    unsafe { errno.write(saved) };
}

/// Returns whether the instruction that was interrupted could not reach its memory: the file is too
/// short, the medium failed, or the memory is broken. Anything else was sent by somebody.
fn is_fault(code: c_int) -> bool {
    matches!(code, libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR)
}

fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, fault: bool) {
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    let back = HANDING_ON.load(Ordering::Relaxed) == thread;
    let took = !back
        && HANDING_ON.compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if took {
        RETURNS.store(0, Ordering::Relaxed);
    }
    let returns = if back { RETURNS.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
    let to = match returns {
        0 => LATEST.load(Ordering::Acquire),
        1 => FIRST.load(Ordering::Acquire),
        _ => ptr::null_mut(),
    };
    // SAFETY: it is null or was leaked by `install`.
    call(unsafe { to.as_ref() }, signal, info, context, fault);
    if took {
        HANDING_ON.store(0, Ordering::Relaxed);
    }
}

/// Does what the system would have done with `action`.
fn call(
    action: Option<&libc::sigaction>,
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    fault: bool,
) {
    let flags = action.map_or(0, |action| action.sa_flags);
    if flags & libc::SA_RESETHAND != 0 {
        let _ = set(libc::SIG_DFL, 0);
    }
    match action.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        libc::SIG_IGN if !fault => {}
        // A fault that is ignored would come again without end: the system ends it, too.
        libc::SIG_DFL | libc::SIG_IGN => end(signal, fault),
        address if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: somebody installed this address as a handler with this signature.
            let handler: InfoHandler = unsafe { std::mem::transmute(address) };
            handler(signal, info, context);
        }
        address => {
            // SAFETY: as above.
            let handler: Handler = unsafe { std::mem::transmute(address) };
            handler(signal);
        }
    }
}

/// Lets the signal end the process: a fault comes again at once, anything else has to be sent.
fn end(signal: c_int, fault: bool) {
    if set(libc::SIG_DFL, 0).is_ok() && !fault {
        // SAFETY: sends a signal to this thread.
        unsafe { libc::raise(signal) };
    }
}

fn present() -> io::Result<libc::sigaction> {
    let mut present = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is installed; `present` is writable.
    check(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), present.as_mut_ptr()) })?;
    // SAFETY: the call succeeded and filled it in.
    Ok(unsafe { present.assume_init() })
}

fn set(address: libc::sighandler_t, flags: c_int) -> io::Result<()> {
    // SAFETY: all bits zero are an empty mask and no flags.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = address;
    action.sa_flags = flags;
    // SAFETY: the address is SIG_DFL or this file's handler, which has the signature that the
    // flags say and may be called at any time.
    check(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) })
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
