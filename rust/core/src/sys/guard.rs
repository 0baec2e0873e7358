//! Mapped memory that its owner may take away.
//!
//! Whoever shares a file may cut it later; from then on the pages that are gone cannot be touched:
//! a system call fails with EFAULT, and a load or store is a SIGBUS, which ends a process that has
//! no answer to it. So each shared mapping is noted in a table here. The answer to a fault inside
//! one of them is private zeroes instead of all of its pages, and a [`Loss`] that says so: nothing
//! that was read since may count. A forked child, which inherits no guest memory, gets zeroes too.
//!
//! What a hypervisor lends is guarded in the same way, with two differences: see `Owner`.
//!
//! The table is read by a signal handler: it is made of atomics, and nothing that is called there
//! locks or allocates.
#![allow(unsafe_code)] // Replaces mappings by address, and follows a pointer out of a static.

use std::io;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::mm::{self, MapFlags, ProtFlags};

use super::eventfd::EventFd;
pub(super) use super::guard_table::Owner;
use super::guard_table::{CLAIMED, FREE, Found, Slot, Table};
use super::loss_flag::LossFlag;

/// The most mappings noted at the same time: more than Linux lets a process have
/// (`vm.max_map_count` is 65530 unless somebody raised it). Pages of the table that are not used
/// take no memory.
const SLOTS: usize = 1 << 16;

static TABLE: Table<SLOTS> = Table::new();

/// The process that has the mappings which are noted. It changes in a forked child.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Says that memory of a guest was lost, to whoever asks and to whoever waits.
#[derive(Debug)]
pub struct Loss {
    flag: LossFlag,
    wake: Arc<EventFd>,
}

/// A mapping's place in the table, as long as this value lives.
#[derive(Debug)]
pub(super) struct Guard {
    number: usize,
    slot: &'static Slot,
    loss: OnceLock<Arc<Loss>>,
}

impl Loss {
    /// Returns a loss that has not happened; `wake` will be signalled when it does.
    pub fn new(wake: Arc<EventFd>) -> Arc<Self> {
        Arc::new(Self { flag: LossFlag(AtomicBool::new(false)), wake })
    }

    /// Returns whether memory was lost. A thread that has read zeroes in place of what was lost
    /// gets `true`.
    #[inline]
    pub fn has_happened(&self) -> bool {
        self.flag.is_set()
    }

    /// Notes that memory was lost, and wakes who is to hear of it.
    pub fn tell(&self) {
        self.flag.set();
        self.wake.signal();
    }
}

/// Says that the mappings noted from now on are this process's.
pub(super) fn answer_for_this_process() {
    PROCESS.store(process::id(), Ordering::Relaxed);
}

impl Guard {
    /// Notes `len` bytes at `start`, which are mapped and not used yet. The
    /// [handlers](super::fault_handlers::install) were installed before.
    ///
    /// # Errors
    /// The table is full.
    pub(super) fn new(start: usize, len: usize, owner: Owner) -> io::Result<Self> {
        let full = || {
            io::Error::other(format!(
                "this process has {SLOTS} shared mappings, and no more are taken"
            ))
        };
        let (number, slot) = TABLE.note(start, len, owner, process::id()).ok_or_else(full)?;
        Ok(Self { number, slot, loss: OnceLock::new() })
    }

    /// Returns who is told when this mapping is lost.
    pub(super) fn loss(&self) -> Option<&Arc<Loss>> {
        self.loss.get()
    }

    /// Has `loss` told when this mapping is lost; the first call counts.
    pub(super) fn watch(&self, loss: &Arc<Loss>) {
        let loss = self.loss.get_or_init(|| Arc::clone(loss));
        self.slot.loss.store(Arc::as_ptr(loss).cast_mut().cast(), Ordering::Release);
    }

    /// Returns whether the range belongs to this process: not so in a forked child whose part in it
    /// could not be replaced. Somebody else may be there by now.
    pub(super) fn is_ours(&self) -> bool {
        self.slot.process.load(Ordering::Relaxed) == process::id()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE.free(self.number);
    }
}

/// Says that a system call found the memory at `address` gone. The handler hears nothing of such
/// faults.
///
/// # Safety
/// What is mapped there must stay mapped during the call.
pub unsafe fn report_fault(address: *const u8) {
    let Some(found) = find(address as usize).filter(|found| found.owner == Owner::File) else {
        return;
    };
    // SAFETY: the mapping exists, as the caller promises, and holds what it told its slot.
    if let Some(loss) = unsafe { found.loss.cast::<Loss>().as_ref() } {
        loss.tell();
    }
}

/// Returns whether memory was lost that was told together with the mapping at `address`: what has
/// been read there may be zeroes that nobody wrote.
///
/// # Safety
/// What is mapped there must stay mapped during the call.
pub unsafe fn is_lost(address: *const u8) -> bool {
    let loss = find(address as usize).map_or(ptr::null(), |found| found.loss);
    // SAFETY: the mapping exists, as the caller promises, and holds what it told its slot.
    unsafe { loss.cast::<Loss>().as_ref() }.is_some_and(Loss::has_happened)
}

/// Puts zeroes in place of the noted mapping that `address` lies in; `false` if it lies in none or
/// the system refuses. Called by the signal handler.
pub(super) fn replace(address: usize) -> bool {
    let Some(found) = find(address) else { return false };
    // SAFETY: the thread that faulted holds the mapping, which holds what it told the slot.
    let loss = unsafe { found.loss.cast::<Loss>().as_ref() };
    if let Some(loss) = loss {
        // First: whoever reads zeroes must be able to know.
        loss.flag.set();
    }
    let page = address & !(rustix::param::page_size() - 1);
    // A system that promises no more memory than it has may refuse the whole.
    let done = zeroes(found.start, found.len)
        || found.owner == Owner::File && zeroes(page, rustix::param::page_size());
    if let Some(loss) = loss {
        loss.tell();
    }
    done
}

/// In a forked child: puts zeroes where the parent's mappings were, so that nothing else gets
/// there and what still points there finds something.
pub(super) fn replace_all_in_child() {
    let parent = PROCESS.swap(process::id(), Ordering::Relaxed);
    for slot in TABLE.used() {
        let start = slot.start.load(Ordering::Acquire);
        let inherited = start > CLAIMED && slot.process.load(Ordering::Acquire) == parent;
        if inherited && zeroes(start, slot.len.load(Ordering::Acquire)) {
            slot.loss.store(ptr::null_mut(), Ordering::Release);
            slot.process.store(process::id(), Ordering::Release);
        }
    }
}

/// Returns the mapping of this process that an address lies in.
fn find(address: usize) -> Option<Found> {
    TABLE.find(address, process::id())
}

impl<const N: usize> Table<N> {
    const fn new() -> Self {
        let (used, hint) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { slots: [const { Slot::new() }; N], used, hint }
    }
}

impl Slot {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(FREE),
            len: AtomicUsize::new(0),
            loss: AtomicPtr::new(ptr::null_mut()),
            lent: AtomicBool::new(false),
            process: AtomicU32::new(0),
        }
    }
}

/// Replaces whatever is mapped there by private zeroes.
fn zeroes(start: usize, len: usize) -> bool {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    let at = ptr::with_exposed_provenance_mut(start);
    // SAFETY: callers name a noted mapping or a page of one. It is of shared memory, to which
    // nobody holds a reference, and whoever holds a pointer expects any contents at any time.
    unsafe { mm::mmap_anonymous(at, len, prot, flags) }.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::ftruncate;

    use super::*;
    use crate::sys::mmap::Mapping;
    use crate::sys::shared::SharedMemory;

    fn is_signalled(event: &EventFd) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
    }

    fn note<const N: usize>(table: &Table<N>, start: usize, len: usize) -> Option<(usize, &Slot)> {
        table.note(start, len, Owner::File, 1)
    }

    #[test]
    fn memory_whose_file_was_cut_reads_as_zeroes_and_the_loss_is_told() {
        let memory = SharedMemory::new("test", 1 << 20).unwrap();
        let mapping = Mapping::shared(memory.as_fd(), 0, 1 << 20).unwrap();
        let wake = Arc::new(EventFd::new().unwrap());
        let loss = Loss::new(Arc::clone(&wake));
        mapping.watch(&loss);
        memory.store_u64(0, 7, Ordering::Relaxed);
        memory.store_u64(1 << 19, 7, Ordering::Relaxed);
        ftruncate(&memory, 4096).unwrap();
        // SAFETY: both numbers lie in the mapping, aligned.
        let [kept, gone] =
            [0, 1 << 19].map(|at| unsafe { AtomicUsize::from_ptr(mapping.base().add(at).cast()) });
        assert_eq!(kept.load(Ordering::Relaxed), 7);
        assert!(!loss.has_happened() && !is_signalled(&wake));
        assert_eq!(gone.load(Ordering::Relaxed), 0);
        assert!(loss.has_happened() && is_signalled(&wake));
        assert_eq!(kept.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_threads_may_run_into_the_same_loss() {
        for _ in 0..50 {
            let memory = SharedMemory::new("test", 1 << 16).unwrap();
            memory.write(0, &[7; 1 << 16]);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut bytes = [1; 1 << 12];
                        while bytes[0] != 0 {
                            memory.read(1 << 15, &mut bytes);
                        }
                    });
                }
                ftruncate(&memory, 0).unwrap();
            });
        }
    }

    #[test]
    fn writing_to_lost_memory_reaches_nobody() {
        let memory = SharedMemory::new("test", 8192).unwrap();
        ftruncate(&memory, 0).unwrap();
        memory.write(0, b"lost");
        ftruncate(&memory, 8192).unwrap();
        let mut bytes = [1; 4];
        assert_eq!(rustix::io::pread(&memory, &mut bytes, 0), Ok(4));
        assert_eq!(bytes, [0; 4]);
    }

    #[test]
    fn a_full_table_takes_no_more_until_a_slot_is_free() {
        let table = Table::<2>::new();
        let (first, _) = note(&table, 0x1000, 0x1000).unwrap();
        note(&table, 0x4000, 0x1000).unwrap();
        assert!(note(&table, 0x8000, 0x1000).is_none());
        table.free(first);
        assert!(table.find(0x1000, 1).is_none());
        note(&table, 0x8000, 0x1000).unwrap();
        assert_eq!(table.find(0x8fff, 1).map(|found| found.start), Some(0x8000));
    }

    #[test]
    fn the_first_free_slot_is_filled_in() {
        let table = Table::<64>::new();
        let next = || note(&table, 0x1000, 0x1000).unwrap().0;
        assert_eq!([next(), next(), next(), next()], [0, 1, 2, 3]);
        [2, 0, 3].into_iter().for_each(|number| table.free(number));
        assert_eq!([next(), next(), next(), next()], [0, 2, 3, 4]);
    }

    #[test]
    fn only_addresses_inside_a_mapping_are_found() {
        let table = Table::<4>::new();
        note(&table, 0x4000, 0x2000).unwrap();
        let found = [0, 1, 0x3fff, 0x4000, 0x5fff, 0x6000, usize::MAX];
        let inside = found.map(|address| table.find(address, 1).is_some());
        assert_eq!(inside, [false, false, false, true, true, false, false]);
    }

    #[test]
    fn a_slot_that_changes_hands_is_never_seen_half() {
        let table = Table::<1>::new();
        let note_and_free = |start, len| {
            let (number, _) = note(&table, start, len).unwrap();
            table.free(number);
        };
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..100_000 {
                    note_and_free(0x1000, 0x1000);
                    note_and_free(0x10_0000, 0x10_0000);
                }
            });
            while !writer.is_finished() {
                // In the long range only if it starts where the short one does.
                assert!(table.find(0x8_0000, 1).is_none());
                let found = table.find(0x1800, 1);
                assert!(found.is_none_or(|found| (found.start, found.len) == (0x1000, 0x1000)));
            }
        });
    }
}
