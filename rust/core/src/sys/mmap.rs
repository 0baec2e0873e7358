//! Shared mappings of a front-end's memory.
#![allow(unsafe_code)] // mmap, munmap and madvise change the address space.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use super::fault_handlers;
use super::guard::{Guard, Loss, Owner};
use super::received_fd::ReceivedFd;
use super::snapshot;
pub use super::snapshot::Place;
use super::userfault::Userfault;

/// The accesses that a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// It may be read only.
    Read,
    /// It may be read and written.
    ReadWrite,
}

impl Protection {
    fn flags(self) -> ProtFlags {
        match self {
            Self::Read => ProtFlags::READ,
            Self::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// A mapping that unmaps itself. Its memory is shared with processes that we do not trust:
/// nothing here hands out a reference to it.
#[derive(Debug)]
pub struct Mapping {
    base: *mut c_void,
    len: usize,
    /// The note of the mapping in the table of those whose owner may take the memory away.
    guard: Option<Guard>,
    /// The file behind it and where in it, for a private view of it at the end.
    file: Option<(ReceivedFd, u64)>,
    /// Who is asked for its missing pages.
    userfault: Option<Arc<Userfault>>,
    /// Its pages were taken away.
    detached: AtomicBool,
}

// SAFETY: a mapping belongs to the process, not to a thread; the pointer is only handed out as a
// raw pointer and unmapped once, by the owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; `detach` replaces the pages atomically in the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, a multiple of the page size, readable and
    /// writable, left out of core dumps and of forked children. If the file is cut later, what is
    /// mapped becomes private zeroes with the first access to a part that is gone.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        fault_handlers::install()?;
        let mut mapping = Self::of_device(fd, offset, len, Protection::ReadWrite)?;
        mapping.keep_to_ourselves();
        mapping.guard = Some(Guard::new(mapping.base as usize, len, Owner::File)?);
        Ok(mapping)
    }

    /// Maps what a device shows, for [`lent`](Self::lent), with these rights. Writing to a mapping
    /// that may not be written is a fault: who hands out its address must know.
    pub fn of_device(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        protection: Protection,
    ) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a null hint lets the kernel choose a free range, so no memory in use changes.
        let base =
            unsafe { mm::mmap(ptr::null_mut(), len, protection.flags(), flags, fd, offset) }?;
        Ok(Self::new(base, len))
    }

    /// Returns `len` bytes of zeroes of this process's own. They take no memory before they are
    /// written.
    pub fn private(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        Self::anonymous(len, Protection::ReadWrite.flags(), flags)
    }

    /// Returns `len` bytes of addresses with nothing behind them, to be filled by
    /// [`place`](Self::place).
    pub fn reserved(len: usize) -> io::Result<Self> {
        Self::anonymous(len, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    /// Maps these parts of files, each with the file, where in it and how many bytes, one behind the
    /// other. Returns the mapping, and where in it the first byte of the first part is.
    ///
    /// # Errors
    /// A part does not begin, or end, where a page does, and another is before it, or behind it; or
    /// a file cannot be mapped so.
    pub fn stitched(parts: &[(OwnedFd, u64, usize)]) -> io::Result<(Self, usize)> {
        let page = rustix::param::page_size();
        let lead = parts.first().map_or(0, |(_, offset, _)| (offset % page as u64) as usize);
        let whole = lead + parts.iter().map(|(_, _, len)| len).sum::<usize>();
        fault_handlers::install()?;
        let mut mapping = Self::reserved(whole.next_multiple_of(page))?;
        let mut at = lead;
        for (fd, offset, len) in parts {
            let (skip, end) = (at % page, at + len);
            let start = offset.checked_sub(skip as u64).filter(|o| o.is_multiple_of(page as u64));
            let meets = (skip == 0 || at == lead) && (end == whole || end.is_multiple_of(page));
            let start = start.filter(|_| meets).ok_or(io::ErrorKind::InvalidInput)?;
            let bytes = (skip + len).next_multiple_of(page);
            mapping.place(at - skip, fd.as_fd(), start, bytes, Protection::ReadWrite)?;
            at = end;
        }
        mapping.keep_to_ourselves();
        mapping.guard = Some(Guard::new(mapping.base as usize, mapping.len, Owner::File)?);
        Ok((mapping, lead))
    }

    /// Returns the file that was kept, and where in it a byte of this mapping lies.
    pub fn file_of(&self, byte: *mut u8) -> Option<(BorrowedFd<'_>, u64)> {
        let (file, offset) = self.file.as_ref()?;
        let inside = byte.addr().checked_sub(self.base.addr()).filter(|&at| at < self.len)?;
        Some((file.as_fd(), offset + inside as u64))
    }

    fn anonymous(len: usize, prot: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: a null hint lets the kernel choose a free range, so no memory in use changes.
        let base = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, prot, flags) }?;
        Ok(Self::new(base, len))
    }

    fn new(base: *mut c_void, len: usize) -> Self {
        let detached = AtomicBool::new(false);
        Self { base, len, guard: None, file: None, userfault: None, detached }
    }

    /// Puts `len` bytes of `fd` from `offset` at `at` of a mapping that nobody uses yet, whole
    /// pages all three. On an error the mapping is of no more use and must be dropped; what was
    /// at the place may be gone, and the place is then kept from others if it still can be.
    ///
    /// # Panics
    /// If the place is not inside the mapping.
    pub fn place(
        &mut self,
        at: usize,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        protection: Protection,
    ) -> io::Result<()> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "a place outside");
        let base = self.base.wrapping_byte_add(at);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range lies inside the one that this value owns, as just checked, and nobody
        // holds a pointer into it: `self` is borrowed mutably.
        let placed = unsafe { mm::mmap(base, len, protection.flags(), flags, fd, offset) };
        if let Err(error) = placed {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
            // SAFETY: as above; and nothing that is mapped there is replaced.
            let filled = unsafe { mm::mmap_anonymous(base, len, ProtFlags::empty(), flags) };
            if filled.is_err() {
                // Either the former pages are still there, or somebody else's are by now. Those
                // must not be unmapped: the addresses are given up instead.
                self.len = 0;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Returns the address of the first byte. It is valid for [`len`](Self::len) bytes while this
    /// value lives.
    pub fn base(&self) -> *mut u8 {
        self.base.cast()
    }

    /// Returns the number of bytes that are mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing is mapped; never so for a value in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says that all of it is another domain's memory, and that nobody uses it yet: an access that
    /// cannot reach it is answered as if it were a file's. [`fault_handlers::install`] was called
    /// before.
    pub fn lent(mut self) -> io::Result<Self> {
        // Linux's drivers leave their areas out of dumps, but not always out of children.
        self.advise(Advice::LinuxDontFork);
        // Made while there are descriptors to be had: `detach` counts on it.
        snapshot::nothing()?;
        self.guard = Some(Guard::new(self.base as usize, self.len, Owner::Domain)?);
        Ok(self)
    }

    /// Keeps the file for [`detach`](Self::detach).
    #[must_use]
    pub fn keep(mut self, file: ReceivedFd, offset: u64) -> Self {
        self.file = Some((file, offset));
        self
    }

    /// Takes the pages away: from now on nothing that is done here touches anything of their
    /// owner's. The address range stays taken until this value is dropped, for those who still
    /// have a pointer into it, and shows private memory: what the file holds, if it was kept, or
    /// else what is `needed` of the pages, and zeroes.
    ///
    /// If that cannot be had, nothing can be read there: a system call fails with EFAULT, and an
    /// access is answered as one to a file that was cut. Once it is done, further calls change
    /// nothing: what is shown then stays.
    ///
    /// # Errors
    /// Neither can be done. The pages stay.
    pub fn detach(&self, needed: &[Place]) -> io::Result<()> {
        if self.len == 0 || self.detached.load(Ordering::SeqCst) {
            return Ok(());
        }
        let shown = match &self.file {
            // A private view of the file would make pages of it that are still to come.
            Some((file, offset)) if self.awaits_pages() => {
                let copy =
                    snapshot::copy_of_file(file.as_fd(), *offset, self.base(), self.len, needed);
                copy.and_then(|copy| self.show(copy.as_fd(), 0, MapFlags::PRIVATE))
            }
            Some((file, offset)) => self.show(file.as_fd(), *offset, MapFlags::PRIVATE),
            None => {
                // SAFETY: the range is mapped as long as this value lives.
                let copy = unsafe { snapshot::copy(self.base(), self.len, needed) };
                copy.and_then(|copy| self.show(copy.as_fd(), 0, MapFlags::PRIVATE))
            }
        };
        shown.or_else(|_| self.show(snapshot::nothing()?, 0, MapFlags::SHARED))?;
        self.detached.store(true, Ordering::SeqCst);
        if let Some(userfault) = &self.userfault {
            // Who waits for a page finds another there.
            userfault.wake(self.base(), self.len);
        }
        Ok(())
    }

    /// Has whoever touches a page that the file does not have yet wait until whoever has `userfault`
    /// has brought it. Nobody uses the mapping yet.
    ///
    /// # Errors
    /// The file is no shared memory.
    pub fn await_pages(&mut self, userfault: &Arc<Userfault>) -> io::Result<()> {
        // A huge page would be made of the pages that are there, and of zeroes.
        self.advise(Advice::LinuxNoHugepage);
        userfault.register(self.base(), self.len)?;
        self.userfault = Some(Arc::clone(userfault));
        Ok(())
    }

    /// Has nobody wait for pages any more: all are there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn has_all_pages(&self) -> io::Result<()> {
        match &self.userfault {
            Some(userfault) if !self.detached.load(Ordering::SeqCst) => {
                userfault.unregister(self.base(), self.len)
            }
            _ => Ok(()),
        }
    }

    /// Whether pages may be missing.
    fn awaits_pages(&self) -> bool {
        self.userfault.as_ref().is_some_and(|userfault| userfault.is_active())
    }

    /// Maps the same bytes of the file that was kept once more, at other addresses. `None`: there
    /// is no such file.
    pub fn again(&self) -> io::Result<Option<Self>> {
        let Some((file, offset)) = &self.file else { return Ok(None) };
        let again = Self::shared(file.as_fd(), *offset, self.len)?;
        Ok(Some(again.keep(file.try_clone()?, *offset)))
    }

    /// Has the kernel copy the pages of these places, which are private by now, so that they do not
    /// show what is written to the file later; up to [`snapshot::MOST`] bytes.
    pub fn keep_private(&self, places: impl Iterator<Item = Place>) {
        let (base, page) = (self.base.addr(), rustix::param::page_size());
        let inside = places.filter_map(|(start, len)| {
            let first = start.addr().checked_sub(base)?;
            Some((first / page * page..(first.saturating_add(len)).min(self.len)).step_by(page))
        });
        for at in inside.flatten().take(snapshot::MOST / page) {
            let byte = self.base().wrapping_add(at);
            // SAFETY: `at` is inside the mapping, which stays while `self` is there, and is readable
            // and writable; nobody holds a reference into it.
            unsafe { byte.write_volatile(byte.read_volatile()) };
        }
    }

    fn show(&self, file: BorrowedFd<'_>, offset: u64, how: MapFlags) -> io::Result<()> {
        let flags = how | MapFlags::NORESERVE | MapFlags::FIXED;
        let rights = Protection::ReadWrite.flags();
        // SAFETY: the range is exactly the one that this value owns; nobody holds a reference
        // into it, only raw pointers whose users expect the contents to change at any time.
        unsafe { mm::mmap(self.base, self.len, rights, flags, file, offset) }?;
        self.keep_to_ourselves();
        Ok(())
    }

    /// Has `loss` told if the memory is taken away; the first call counts. Nothing of what is this
    /// process's own ever is.
    pub fn watch(&self, loss: &Arc<Loss>) {
        if let Some(guard) = &self.guard {
            guard.watch(loss);
        }
    }

    /// Has the one told of a loss who is told of a loss of `other`.
    pub fn watch_as(&self, other: &Self) {
        if let Some(loss) = other.guard.as_ref().and_then(Guard::loss) {
            self.watch(loss);
        }
    }

    fn keep_to_ourselves(&self) {
        self.advise(Advice::LinuxDontDump);
        self.advise(Advice::LinuxDontFork);
    }

    fn advise(&self, advice: Advice) {
        // SAFETY: the range is our own mapping, and neither piece of advice changes its contents
        // in this process. A kernel that does not know the advice leaves things as they were.
        let _ = unsafe { mm::madvise(self.base, self.len, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let theirs = self.guard.as_ref().is_some_and(|guard| !guard.is_ours());
        // Before the addresses become somebody else's.
        self.guard = None;
        if self.len == 0 || theirs {
            return;
        }
        // SAFETY: the range was mapped when this value was made, is unmapped only here, and every
        // user of the raw pointer holds the owner of this value.
        let _ = unsafe { mm::munmap(self.base, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::eventfd::EventFd;
    use crate::sys::shared::SharedMemory;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    /// Where a file is mapped in this process, and with which rights.
    fn mapped(file: &str) -> Vec<(usize, String)> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of_file = maps.lines().filter(|line| line.contains(file));
        let parse = |line: &str| {
            let (start, rest) = line.split_once('-').unwrap();
            let rights = rest.split_whitespace().nth(1).unwrap();
            (usize::from_str_radix(start, 16).unwrap(), rights.to_owned())
        };
        of_file.map(parse).collect()
    }

    #[test]
    fn a_place_in_a_reservation_is_mapped_as_asked_and_goes_with_it() {
        let name = "a place in a reservation";
        let file = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4 * 4096).unwrap();
        let mut area = Mapping::reserved(8 * 4096).unwrap();
        area.place(4096, file.as_fd(), 4096, 2 * 4096, Protection::ReadWrite).unwrap();
        area.place(5 * 4096, file.as_fd(), 0, 4096, Protection::Read).unwrap();
        let start = area.base() as usize;
        let expected = [(start + 4096, "rw-s"), (start + 5 * 4096, "r--s")];
        assert_eq!(mapped(name), expected.map(|(at, rights)| (at, rights.to_owned())));
        drop(area);
        assert_eq!(mapped(name), []);
    }

    #[test]
    fn a_place_that_cannot_be_mapped_is_an_error() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let mut area = Mapping::reserved(4 * 4096).unwrap();
        assert!(area.place(0, reader.as_fd(), 0, 4096, Protection::Read).is_err());
    }

    #[test]
    #[should_panic(expected = "a place outside")]
    fn a_place_outside_the_reservation_panics() {
        let file = memfd_create("a place", MemfdFlags::CLOEXEC).unwrap();
        let mut area = Mapping::reserved(4096).unwrap();
        let _ = area.place(4096, file.as_fd(), 0, 4096, Protection::Read);
    }

    #[test]
    fn parts_of_files_are_stitched_where_their_pages_meet() {
        let file = SharedMemory::new("stitched", 4 * 4096).unwrap();
        let bytes: Vec<u8> = (0..4 * 4096).map(|at| (at / 4096) as u8).collect();
        file.write(0, &bytes);
        let part = |offset, len| (file.as_fd().try_clone_to_owned().unwrap(), offset, len);
        let parts = [part(2 * 4096 + 100, 3996), part(0, 4096), part(3 * 4096, 10)];
        let (mapping, lead) = Mapping::stitched(&parts).unwrap();
        assert_eq!((lead, mapping.len()), (100, 3 * 4096));
        let seen = read(&mapping).unwrap();
        assert_eq!([seen[100], seen[4096], seen[8191], seen[8192]], [2, 0, 0, 3]);
        // It is the same memory, and no copy.
        file.write(3 * 4096, &[9]);
        assert_eq!(read(&mapping).unwrap()[8192], 9);
        for bad in [
            [part(0, 100), part(4096, 10)],
            [part(0, 4096), part(4096 + 1, 10)],
            [part(5, 4096), part(4096, 10)],
        ] {
            assert!(Mapping::stitched(&bad).is_err());
        }
    }

    #[test]
    fn what_is_needed_of_memory_that_goes_is_kept() {
        let file = SharedMemory::new("needed", 4 * 4096).unwrap();
        let fill = [7; 4 * 4096];
        file.write(0, &fill);
        let mapping = Mapping::shared(file.as_fd(), 0, 4 * 4096).unwrap();
        let place = |at, len| (mapping.base().wrapping_add(at), len);
        mapping.detach(&[place(100, 50), place(2 * 4096 + 1, 2 * 4096 - 1)]).unwrap();
        file.write(0, &[1; 4 * 4096]);
        let shown = read(&mapping).unwrap();
        let kept = |at: usize| (100..150).contains(&at) || at > 2 * 4096;
        let expected: Vec<u8> = (0..4 * 4096).map(|at| if kept(at) { 7 } else { 0 }).collect();
        assert!(shown == expected);
    }

    #[test]
    fn where_too_much_is_needed_nothing_can_be_read() {
        let file = SharedMemory::new("too much", 1 << 20).unwrap();
        file.write(0, &[7; 1 << 20]);
        let mapping = Mapping::shared(file.as_fd(), 0, 1 << 20).unwrap();
        let loss = Loss::new(Arc::new(EventFd::new().unwrap()));
        mapping.watch(&loss);
        let all = (mapping.base(), mapping.len());
        mapping.detach(&[all; 257]).unwrap();
        assert_eq!(read(&mapping).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        assert!(!loss.has_happened());
        // SAFETY: the first byte of a mapping.
        let byte = unsafe { mapping.base().read_volatile() };
        assert!(byte == 0 && loss.has_happened(), "and who looks all the same is told");
        mapping.detach(&[all]).unwrap();
    }

    #[test]
    fn what_is_kept_of_memory_that_has_gone_stays_when_more_goes() {
        let file = SharedMemory::new("twice", 4096).unwrap();
        file.write(0, &[7; 4096]);
        let again = rustix::io::dup(file.as_fd()).unwrap();
        let mapping = Mapping::shared(file.as_fd(), 0, 4096).unwrap().keep(again.into(), 0);
        mapping.detach(&[]).unwrap();
        mapping.keep_private([(mapping.base(), 4096)].into_iter());
        file.write(0, &[1; 4096]);
        mapping.detach(&[]).unwrap();
        assert!(read(&mapping).unwrap() == [7; 4096]);
    }

    /// What a system call finds in a mapping.
    fn read(mapping: &Mapping) -> io::Result<Vec<u8>> {
        let file = memfd_create("read", MemfdFlags::CLOEXEC)?;
        let vector = libc::iovec { iov_base: mapping.base, iov_len: mapping.len };
        // SAFETY: it is mapped as long as `mapping` is there.
        let len = unsafe { crate::sys::io::pwritev(file.as_fd(), &[vector], 0, false) }?;
        let mut bytes = vec![0; len];
        rustix::io::pread(&file, &mut bytes[..], 0)?;
        Ok(bytes)
    }
}
