//! The dirty log: a bit for each page of guest memory, which says that the page was written to. A
//! front-end that copies a running guest's memory elsewhere clears bits, and copies these pages
//! once more.
//!
//! A bit is set after its page was written, so that whoever finds it clear later copies what was
//! written. Several devices have one log, each perhaps in a process of its own, and the front-end
//! clears bits meanwhile: so a bit is set by an atomic OR. That is left out where the bit is set
//! already, as it nearly always is for rings and for buffers that are used again. Then nothing but a
//! fence keeps the look at the bit behind the write to the page, and one fence does for a batch
//! ([`DirtyLog::order`]).
//!
//! QEMU "Vhost-user Protocol", "Migration".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::buffers::Buffers;
use super::file::{FilePart, map_part};
use super::policy::{MappedBytes, MemoryPolicy};
use super::region_error::RegionError;
use super::segment::GuestSlice;
use super::window::Window;
use crate::address::GuestAddr;
use crate::sys::guard::Loss;
use crate::sys::mmap::Mapping;
use crate::sys::received_fd::ReceivedFd;

/// The bytes of guest memory that one bit stands for, whatever the pages of guest and host are.
const LOG_PAGE: u64 = 4096;

/// The pages that a word of the log has bits for.
const WORD: u64 = 64;

/// A log that is mapped.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Window,
    mapping: Arc<Mapping>,
    /// It has bits for so many pages.
    pages: u64,
    /// The lowest page that it had no bit for; `u64::MAX`: there was none.
    beyond: AtomicU64,
    /// Somebody has asked for that page.
    told: AtomicBool,
    _mapped: MappedBytes,
}

/// A write that a log has no bit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// The first page that has no bit.
    pub at: GuestAddr,
    /// The bytes of the log.
    pub log_bytes: u64,
    /// The bytes that it would need for this page.
    pub needed: u64,
}

impl DirtyLog {
    /// Maps a log of `len` bytes, of `fd` from `offset` on.
    ///
    /// # Errors
    /// As for [guest memory](super::Region::map), or the offset is no multiple of the page size.
    pub fn map(
        policy: &MemoryPolicy,
        fd: ReceivedFd,
        offset: u64,
        len: u64,
    ) -> Result<Self, RegionError> {
        let page = rustix::param::page_size() as u64;
        if !offset.is_multiple_of(page) {
            return Err(RegionError::NotAPage { offset, page });
        }
        let FilePart { mapping, place, bytes } = map_part(policy, &fd, offset, len)?;
        let mapping = Arc::new(mapping);
        // What is mapped are whole pages: the last word is mapped if some of its bytes are.
        let words = place.len().next_multiple_of(8);
        let place = GuestSlice::new(place.base(), words);
        let bits = Window::of_file(&mapping, place, words, 8);
        let bits = bits.expect("whole words from the start of a page");
        let (beyond, told) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        Ok(Self { bits, mapping, pages: len.saturating_mul(8), beyond, told, _mapped: bytes })
    }

    /// Has `loss` told if the front-end cuts the file.
    pub fn watch(&self, loss: &Arc<Loss>) {
        self.mapping.watch(loss);
    }

    /// To be called after guest memory was written, and before [`mark`](Self::mark) is for it.
    #[inline]
    pub fn order() {
        // It pairs with the atomic exchange by which the front-end clears a bit before it copies the
        // page: either the look at the bit finds it clear, or the front-end finds what was written.
        fence(Ordering::SeqCst);
    }

    /// Marks the pages of `len` bytes at `at`. The last thing between the writes and this was a
    /// fence, by [`order`](Self::order) or another.
    #[inline]
    pub fn mark(&self, at: GuestAddr, len: u64) {
        let Some(rest) = len.checked_sub(1) else { return };
        let (first, last) = (at.0 / LOG_PAGE, at.0.saturating_add(rest) / LOG_PAGE);
        if last >= self.pages {
            return self.mark_what_fits(first);
        }
        self.mark_pages(first, last);
    }

    /// Returns the first write that the log had no bit for, once.
    #[inline]
    pub fn take_beyond(&self) -> Option<Beyond> {
        let page = self.beyond.load(Ordering::Relaxed);
        if page == u64::MAX || self.told.swap(true, Ordering::Relaxed) {
            return None;
        }
        let at = GuestAddr(page.saturating_mul(LOG_PAGE));
        Some(Beyond { at, log_bytes: self.pages / 8, needed: page / 8 + 1 })
    }

    /// Marks the pages from `first` to `last`.
    #[inline]
    fn mark_pages(&self, first: u64, last: u64) {
        for word in first / WORD..=last / WORD {
            let from = first.saturating_sub(word * WORD);
            let to = (last - word * WORD).min(WORD - 1);
            let bits = u64::MAX >> (WORD - 1 - (to - from)) << from;
            // The log is mapped, so its length fits.
            self.bits.set_bits(word as usize * 8, bits);
        }
    }

    #[cold]
    fn mark_what_fits(&self, first: u64) {
        self.beyond.fetch_min(first.max(self.pages), Ordering::Relaxed);
        if first < self.pages {
            self.mark_pages(first, self.pages - 1);
        }
    }
}

impl Buffers {
    /// Marks the pages of the first `len` bytes of what the device may write, as
    /// [`DirtyLog::mark`] does.
    #[inline]
    pub fn mark(&self, log: &DirtyLog, len: u64) {
        let Some(memory) = self.memory() else { return };
        let by_host = memory.by_host();
        for part in self.writable().parts(0, len) {
            if let Some(at) = by_host.guest_of(part) {
                log.mark(at, part.len() as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::sys::shared::SharedMemory;

    fn log(shared: &SharedMemory, offset: u64, len: u64) -> Result<DirtyLog, RegionError> {
        let fd = shared.as_fd().try_clone_to_owned().unwrap();
        DirtyLog::map(&MemoryPolicy::default(), fd.into(), offset, len)
    }

    fn bytes(shared: &SharedMemory) -> Vec<u8> {
        let mut bytes = vec![0; shared.len()];
        shared.read(0, &mut bytes);
        bytes
    }

    /// QEMU "Vhost-user Protocol", "Migration": the bit of a page is `1 << (page % 8)` of the byte
    /// `page / 8`.
    #[test]
    fn every_page_of_a_range_has_its_bit_set_and_no_other() {
        for (first, last) in
            [(0, 0), (7, 8), (0, 63), (63, 64), (1, 200), (64, 127), (130, 319), (318, 319)]
        {
            let shared = SharedMemory::new("log", 40).unwrap();
            let (at, end) = (first * 4096 + 4095, last * 4096 + 1);
            log(&shared, 0, 40).unwrap().mark(GuestAddr(at.min(end)), end.abs_diff(at).max(1));
            let mut expected = vec![0_u8; 40];
            for page in at.min(end) / 4096..=(at.min(end) + end.abs_diff(at).max(1) - 1) / 4096 {
                expected[(page / 8) as usize] |= 1 << (page % 8);
            }
            assert_eq!(bytes(&shared), expected, "{first} to {last}");
        }
    }

    #[test]
    fn no_byte_marks_no_page_and_bits_of_others_stay() {
        let shared = SharedMemory::new("log", 8).unwrap();
        shared.write(0, &[0x80, 1]);
        let log = log(&shared, 0, 8).unwrap();
        log.mark(GuestAddr(0x3000), 0);
        assert_eq!(bytes(&shared), [0x80, 1, 0, 0, 0, 0, 0, 0]);
        log.mark(GuestAddr(0x2fff), 2);
        assert_eq!(bytes(&shared), [0x8c, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn pages_that_a_log_has_no_bit_for_are_left_out_and_told_once() {
        // Three bytes are no whole word; the bytes behind them belong to somebody else.
        let shared = SharedMemory::new("log", 16).unwrap();
        let log = log(&shared, 0, 3).unwrap();
        log.mark(GuestAddr(22 << 12), 0x3000);
        assert_eq!(bytes(&shared)[..8], [0, 0, 0xc0, 0, 0, 0, 0, 0]);
        log.mark(GuestAddr(1 << 40), 1);
        log.mark(GuestAddr(u64::MAX), u64::MAX);
        assert_eq!(bytes(&shared)[..8], [0, 0, 0xc0, 0, 0, 0, 0, 0]);
        let beyond = Beyond { at: GuestAddr(24 << 12), log_bytes: 3, needed: 4 };
        assert_eq!(log.take_beyond(), Some(beyond));
        assert_eq!(log.take_beyond(), None);
    }

    #[test]
    fn a_log_that_fits_all_tells_nothing() {
        let shared = SharedMemory::new("log", 8).unwrap();
        let log = log(&shared, 0, 8).unwrap();
        log.mark(GuestAddr(0), 64 << 12);
        assert_eq!((bytes(&shared), log.take_beyond()), (vec![0xff; 8], None));
    }

    /// As by two processes: each has its own mapping.
    #[test]
    fn bits_of_one_word_that_two_set_at_the_same_time_are_all_set() {
        const BYTES: u64 = 1 << 20;
        let shared = SharedMemory::new("log", BYTES as usize).unwrap();
        let logs = [(); 2].map(|()| log(&shared, 0, BYTES).unwrap());
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for (log, first) in logs.iter().zip(0..) {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    (first..8 * BYTES).step_by(2).for_each(|page| log.mark_pages(page, page));
                });
            }
        });
        assert!(bytes(&shared).iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn a_log_starts_at_a_page_of_its_file_and_ends_inside() {
        let page = rustix::param::page_size() as u64;
        let shared = SharedMemory::new("log", 2 * page as usize).unwrap();
        log(&shared, page, page).unwrap().mark(GuestAddr(0), 1);
        assert_eq!(bytes(&shared)[page as usize], 1);
        let why = |offset, len| log(&shared, offset, len).unwrap_err().to_string();
        assert!(why(8, 8).contains("its offset 0x8 is no multiple of a page"), "{}", why(8, 8));
        assert!(why(page, page + 1).contains("offset and size ask for"), "{}", why(page, page + 1));
    }
}
