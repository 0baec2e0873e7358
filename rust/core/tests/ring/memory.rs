//! Guest memory: tables of regions, looking up in them, mapping, and letting go.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::memory::{
    Access, Buffers, Extent, Memory, MemoryPolicy, OutOfMemory, Reads, Region, RegionError,
    TableError, Unreachable,
};

use crate::guest::{memfd, region, user};

const PAGE: u64 = 0x1000;
/// The most regions that a front-end may share.
const SLOTS: u64 = 509;

fn at(guest: u64, user: u64, size: u64) -> Arc<Region> {
    let extent = Extent { guest: GuestAddr(guest), user: UserAddr(user), size };
    Region::map(&MemoryPolicy::default(), extent, 0, memfd(size)).unwrap()
}

fn map(size: u64, offset: u64, fd: OwnedFd) -> Result<Arc<Region>, RegionError> {
    let extent = Extent { guest: GuestAddr(0x1000), user: user(0x1000), size };
    Region::map(&MemoryPolicy::default(), extent, offset, fd)
}

fn bytes_at(memory: &Memory, at: u64, len: usize) -> Result<Vec<u8>, OutOfMemory> {
    let mut reads = Reads::default();
    Ok(reads.read(memory, GuestAddr(at), len)?.expect("mapped memory waits for nothing").to_vec())
}

// Tables.

#[test]
fn regions_that_share_a_guest_address_make_no_table() {
    let user = [0x10_0000, 0x20_0000, 0x30_0000];
    let cases = [
        (0x4000, 0x2000, 0x4000, 0x2000), // the same
        (0x4000, 0x2000, 0x5fff, 0x1000), // by one byte
        (0x4000, 0x1001, 0x5000, 0x1000), // an odd end
        (0x4000, 0x8000, 0x5000, 0x1000), // one inside the other
        (u64::MAX - 0x1fff, 0x2000, u64::MAX - 0xfff, 0x1000),
    ];
    for (first, size, second, other) in cases {
        let regions = [at(second, user[1], other), at(0, user[2], 1), at(first, user[0], size)];
        let error = Memory::new(regions.to_vec()).unwrap_err();
        assert_eq!(error, TableError::GuestOverlap(GuestAddr(first), GuestAddr(second)));
        let memory = Memory::new(vec![at(first, user[0], size)]).unwrap();
        assert_eq!(memory.with(at(second, user[1], other)).unwrap_err(), error);
    }
}

#[test]
fn regions_that_share_a_front_end_address_make_no_table() {
    let regions = vec![at(0x1_0000, 0x7000, 0x1000), at(0x4000, 0x6001, 0x1000)];
    let error = Memory::new(regions).unwrap_err();
    assert_eq!(error, TableError::UserOverlap(UserAddr(0x6001), UserAddr(0x7000)));
}

#[test]
fn regions_that_touch_are_no_overlap() {
    let top = u64::MAX - 0xfff;
    let places = [(0, 0x3000, 0x1000), (0x1000, 0x1000, 0x1000), (top, 0x2000, 0x1000)];
    let regions = places.map(|(guest, user, size)| at(guest, user, size));
    let memory = Memory::new(regions.into()).unwrap();
    let starts: Vec<_> = memory.regions().iter().map(|region| region.guest().0).collect();
    assert_eq!(starts, [0, 0x1000, top]);
}

#[test]
fn only_exactly_the_same_region_is_removed() {
    let memory = Memory::new(vec![at(0x1000, 0x9000, 0x1000), at(0x4000, 0xc000, 0x1000)]).unwrap();
    let others = [
        (0x1000, 0x9000, 0x1001),
        (0x1000, 0x9001, 0x1000),
        (0x1001, 0x9000, 0x1000),
        (0x1000, 0xc000, 0x1000),
        (0x2000, 0xa000, 0x1000),
    ];
    for (guest, user, size) in others {
        let error = memory.without(GuestAddr(guest), UserAddr(user), size).unwrap_err();
        assert_eq!(error, TableError::NoSuchRegion);
    }
    let (left, removed) = memory.without(GuestAddr(0x1000), UserAddr(0x9000), 0x1000).unwrap();
    assert_eq!((left.regions().len(), removed.guest()), (1, GuestAddr(0x1000)));
    assert!(bytes_at(&left, 0x1000, 1).is_err());
    assert!(bytes_at(&memory, 0x1000, 1).is_ok(), "the old table goes on");
}

// Looking up.

/// `SLOTS` regions of one to three pages, some of them touching; each page holds its number.
fn crowded() -> (Memory, Vec<(u64, u64)>) {
    let file = File::from(memfd(PAGE * SLOTS * 3));
    let (mut guest, mut places, mut regions) = (0x10_0000, Vec::new(), Vec::new());
    for slot in 0..SLOTS {
        let size = PAGE * (1 + slot % 3);
        let offset = PAGE * 3 * slot;
        let fd = OwnedFd::from(file.try_clone().unwrap());
        let extent = Extent { guest: GuestAddr(guest), user: user(guest), size };
        regions.push(Region::map(&MemoryPolicy::default(), extent, offset, fd).unwrap());
        for page in 0..size / PAGE {
            let number = (guest / PAGE + page).to_le_bytes();
            rustix::io::pwrite(&file, &number, offset + page * PAGE).unwrap();
        }
        places.push((guest, size));
        guest += size + if slot % 4 == 0 { 0 } else { PAGE * (slot % 7) };
        guest += if slot == 400 { 1 << 40 } else { 0 };
    }
    regions.reverse();
    (Memory::new(regions).unwrap(), places)
}

#[test]
fn every_page_of_509_regions_is_found_and_nothing_beside_them() {
    let (memory, places) = crowded();
    for &(guest, size) in &places {
        for page in (guest..guest + size).step_by(PAGE as usize) {
            let number = bytes_at(&memory, page, 8).unwrap();
            assert_eq!(u64::from_le_bytes(number.try_into().unwrap()), page / PAGE);
        }
        assert!(bytes_at(&memory, guest + size - 1, 1).is_ok());
    }
    let holes = places.windows(2).map(|pair| (pair[0].0 + pair[0].1, pair[1].0));
    for (hole, end) in holes.filter(|(hole, end)| hole < end) {
        assert!(bytes_at(&memory, hole, 1).is_err());
        assert!(bytes_at(&memory, end - 1, 1).is_err());
        assert!(bytes_at(&memory, hole - 1, 2).is_err());
        assert!(bytes_at(&memory, end - 1, 2).is_err());
    }
}

proptest! {
    #[test]
    fn a_range_is_found_exactly_when_all_its_bytes_are_in_regions(
        slot in 0..SLOTS as usize, back in 0..0x2000_u64, len in 0..0x8000_u64,
    ) {
        let (memory, places) = crowded();
        let start = places[slot].0 + 0x1000 - back;
        // Byte by byte where pages would do, so that the check shares nothing with the code.
        let covered = |at| places.iter().any(|&(guest, size)| (guest..guest + size).contains(&at));
        let whole = (0..len).step_by(0x800).chain([len.saturating_sub(1)]).all(|n| covered(start + n));
        let mut found = 0;
        let result = memory.segments(GuestAddr(start), len, |segment| found += segment.len() as u64);
        prop_assert_eq!(result.is_ok(), whole || len == 0);
        prop_assert!(result.is_err() || found == len);
    }
}

#[test]
fn a_range_past_the_end_of_the_address_space_is_outside() {
    let top = u64::MAX - 0xfff;
    let memory = Memory::new(vec![at(top, 0, 0x1000)]).unwrap();
    let error = OutOfMemory { at: GuestAddr(top), len: 0x1001, reason: Unreachable::Outside };
    assert_eq!(memory.segments(GuestAddr(top), 0x1001, |_| {}), Err(error));
    assert!(bytes_at(&memory, top, 0x800).is_ok());
}

#[test]
fn a_table_without_regions_holds_nothing() {
    let memory = Memory::default();
    assert!(bytes_at(&memory, 0, 1).is_err());
    assert!(bytes_at(&memory, 0, 0).is_ok());
    assert!(memory.window(UserAddr(0), 16, 16).is_none());
}

#[test]
fn a_ring_part_is_found_by_its_front_end_address_inside_one_region() {
    let memory = Memory::new(vec![at(0x1000, 0x9000, 0x1000), at(0x2000, 0xa000, 0x1000)]).unwrap();
    assert!(memory.window(UserAddr(0x9000), 0x1000, 16).is_some());
    assert!(memory.window(UserAddr(0xa008), 8, 8).is_some());
    let nowhere =
        [(0x9008, 0x1000, 8), (0x8fff, 2, 1), (0xb000, 1, 1), (0x1000, 8, 8), (0x9004, 8, 8)];
    for (at, len, align) in nowhere {
        assert!(memory.window(UserAddr(at), len, align).is_none(), "{at:#x}");
    }
}

// Mapping.

#[test]
fn an_offset_that_is_no_page_is_mapped_from_the_page_below() {
    for offset in [0x10, 0xfff, 0x1000, 0x2010] {
        let fd = memfd(0x8000);
        rustix::io::pwrite(&fd, b"here", offset).unwrap();
        let region = map(0x1000, offset, fd).unwrap();
        let memory = Memory::new(vec![region]).unwrap();
        assert_eq!(bytes_at(&memory, 0x1000, 4).unwrap(), b"here");
        assert!(bytes_at(&memory, 0x0fff, 1).is_err(), "the page's start is not the region's");
        assert!(bytes_at(&memory, 0x1fff, 2).is_err());
    }
}

#[test]
fn an_odd_size_ends_where_it_says() {
    let memory = Memory::new(vec![map(0x1001, 0, memfd(0x2000)).unwrap()]).unwrap();
    assert!(bytes_at(&memory, 0x2000, 1).is_ok());
    assert!(bytes_at(&memory, 0x2000, 2).is_err());
    let mut buffers = Buffers::default();
    buffers.begin(&Arc::new(memory));
    buffers.add(GuestAddr(0x2000), 2, Access::DeviceWritable);
    assert!(buffers.fault().is_some());
}

#[test]
fn a_file_that_ends_before_its_region_is_refused() {
    let cases = [(0, 0x1000, 0), (0x1000, 1 << 30, 0), (0x1000, 0x1000, 1), (0x1000, 1, u64::MAX)];
    for (file, size, offset) in cases {
        match map(size, offset, memfd(file)) {
            Err(RegionError::FileTooShort { file: found, needed }) => {
                assert_eq!((found, needed), (file, u128::from(size) + u128::from(offset)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn only_a_regular_file_is_memory() {
    let open =
        |path| rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
    let wrong: [(&str, OwnedFd); 8] = [
        ("a null device", open("/dev/null")),
        ("a zero device", open("/dev/zero")),
        ("a pipe's reader", reader),
        ("a pipe's writer", writer),
        ("a socket", one.into()),
        ("a directory", rustix::fs::open("/tmp", flags, Mode::empty()).unwrap()),
        ("an eventfd", rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()),
        (
            "an epoll",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
        ),
    ];
    for (name, fd) in wrong {
        let refused = map(0x1000, 0, fd);
        assert!(matches!(refused, Err(RegionError::NotAFile(_))), "{name}: {refused:?}");
    }
    drop(two);
}

#[test]
fn a_file_that_may_not_be_written_is_refused() {
    let path = std::env::temp_dir().join(format!("ring-test-{}", std::process::id()));
    File::create(&path).unwrap().write_all(&[0; 0x1000]).unwrap();
    let reader = OwnedFd::from(File::open(&path).unwrap());
    let unopened = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    std::fs::remove_file(&path).unwrap();
    for fd in [reader, unopened] {
        assert!(matches!(map(0x1000, 0, fd), Err(RegionError::System(..))));
    }
}

/// The flags of this process's mapping at an address, from /proc/self/smaps.
fn mapping_flags(base: usize) -> Option<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{base:x}-")));
    lines.find_map(|line| line.strip_prefix("VmFlags: ")).map(str::to_owned)
}

#[test]
fn guest_memory_stays_out_of_core_dumps_and_children() {
    let region = map(0x3000, 0x10, memfd(0x4000)).unwrap();
    let base = region.segment(0, 1).unwrap().base() as usize & !0xfff;
    let flags = mapping_flags(base).expect("the mapping is listed");
    let flags: Vec<_> = flags.split_whitespace().collect();
    for (flag, meaning) in [("dd", "not dumped"), ("dc", "not given to children"), ("sh", "shared")]
    {
        assert!(flags.contains(&flag), "{meaning}: {flags:?}");
    }
}

// Letting go.

/// Whether this process maps any part of a file.
fn is_mapped(file: &File) -> bool {
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode))
}

#[test]
fn a_region_is_gone_with_its_last_holder() {
    let (region, file) = region(0x1000, 0x1000);
    let gone = region.unmap_notifier();
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(GuestAddr(0x1000), 8, Access::DeviceReadable);
    let window = memory.window(user(0x1000), 16, 16).unwrap();
    drop(memory);
    assert!(!gone.wait(Duration::ZERO));
    drop(window);
    assert!(!gone.wait(Duration::ZERO));
    assert!(is_mapped(&file));
    buffers.release();
    assert!(gone.wait(Duration::ZERO));
    assert!(!is_mapped(&file), "told before it was unmapped");
}

#[test]
fn waiting_for_a_region_ends_when_another_thread_lets_go() {
    let (region, _) = region(0x1000, 0x1000);
    let gone = region.unmap_notifier();
    let waiter = std::thread::spawn(move || gone.wait(Duration::from_secs(30)));
    drop(region);
    assert!(waiter.join().unwrap());
}

#[test]
fn detached_memory_is_private_and_shows_what_the_file_holds() {
    let (region, file) = region(0x1000, 0x2000);
    rustix::io::pwrite(&file, b"secret", 0x1000).unwrap();
    let memory = Arc::new(Memory::new(vec![Arc::clone(&region)]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(GuestAddr(0x2000), 6, Access::DeviceReadable);
    buffers.add(GuestAddr(0x2000), 6, Access::DeviceWritable);
    let mut seen = [1; 6];
    assert_eq!(buffers.readable().read_at(0, &mut seen), 6);
    assert_eq!(&seen, b"secret");
    region.detach(&[]);
    // A write to a disk that is still under way must not become a write of zeroes.
    assert_eq!(buffers.readable().read_at(0, &mut seen), 6);
    assert_eq!(&seen, b"secret");
    assert_eq!(buffers.writable().write_at(0, b"no way"), 6);
    let mut left = [0; 6];
    rustix::io::pread(&file, &mut left, 0x1000).unwrap();
    assert_eq!(&left, b"secret", "a write after the end reached the front-end");
    assert_eq!(buffers.readable().read_at(0, &mut seen), 6);
    assert_eq!(&seen, b"no way");
    // What the front-end does to its file is no fault here.
    rustix::fs::ftruncate(&file, 0).unwrap();
    assert_eq!(buffers.readable().read_at(0, &mut seen), 6);
    assert_eq!(seen, [0; 6]);
}

#[test]
fn a_region_closes_its_descriptor_as_it_goes_or_is_refused() {
    for size in [0x1000, 0x2000] {
        let fd = memfd(0x1000);
        let number = fd.as_fd().as_raw_fd();
        let inode = rustix::fs::fstat(&fd).unwrap().st_ino;
        drop(map(size, 0, fd));
        // Another test's descriptor may have taken the number since, never this file.
        let link = std::fs::metadata(format!("/proc/self/fd/{number}"));
        assert!(link.is_err() || link.unwrap().ino() != inode);
    }
}

// Moving data.

#[test]
fn data_moves_between_a_file_and_many_pieces() {
    let (region, guest) = region(0x1000, 0x10_0000);
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    // 300 pieces of 100 bytes, 200 bytes apart: several calls' worth of vectors.
    for piece in 0..300 {
        buffers.add(GuestAddr(0x1000 + 200 * piece), 100, Access::DeviceReadable);
        buffers.add(GuestAddr(0x1000 + 200 * piece), 100, Access::DeviceWritable);
    }
    let image: Vec<u8> = (0..40_000_u32).map(|n| (n % 249) as u8).collect();
    let file = memfd(40_000);
    assert_eq!(rustix::io::pwrite(&file, &image, 0).unwrap(), image.len());
    assert_eq!(buffers.writable().read_from(50, 29_000, file.as_fd(), 7).unwrap(), 29_000);
    let mut seen = vec![0; 29_000];
    assert_eq!(buffers.readable().read_at(50, &mut seen), 29_000);
    assert_eq!(seen, image[7..29_007]);
    let mut between = [1; 100];
    rustix::io::pread(&guest, &mut between, 100).unwrap();
    assert_eq!(between, [0; 100], "a byte between the pieces was written");
    let copy = memfd(0);
    for durable in [false, true] {
        let wrote = buffers.readable().write_to(50, 29_000, copy.as_fd(), 3, durable).unwrap();
        assert_eq!(wrote, 29_000);
    }
    let mut back = vec![0; 29_000];
    assert_eq!(rustix::io::pread(&copy, &mut back, 3).unwrap(), 29_000);
    assert_eq!(back, image[7..29_007]);
}

#[test]
fn a_file_that_ends_gives_what_it_has() {
    let (region, _file) = region(0x1000, 0x1000);
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(GuestAddr(0x1000), 0x1000, Access::DeviceWritable);
    let file = memfd(1000);
    assert_eq!(buffers.writable().read_from(0, 0x1000, file.as_fd(), 300).unwrap(), 700);
    assert_eq!(buffers.writable().read_from(0, 0x1000, file.as_fd(), 1000).unwrap(), 0);
    let far = buffers.writable().read_from(0, 0x1000, file.as_fd(), u64::MAX);
    assert!(far.is_err() || far.unwrap() == 0);
    // More is asked for than there is room, or from behind the room.
    assert_eq!(buffers.writable().read_from(0xf00, 0x1000, file.as_fd(), 0).unwrap(), 0x100);
    assert_eq!(buffers.writable().read_from(0x1000, 1, file.as_fd(), 0).unwrap(), 0);
    assert_eq!(buffers.writable().read_from(u64::MAX, 1, file.as_fd(), 0).unwrap(), 0);
}

#[test]
fn memory_that_lost_its_file_fails_a_transfer_and_not_the_process() {
    let (region, guest) = region(0x1000, 0x2000);
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(GuestAddr(0x1000), 0x1000, Access::DeviceWritable);
    buffers.add(GuestAddr(0x1000), 0x1000, Access::DeviceReadable);
    rustix::fs::ftruncate(&guest, 0).unwrap();
    let file = memfd(0x1000);
    let read = buffers.writable().read_from(0, 0x1000, file.as_fd(), 0).unwrap_err();
    assert_eq!(read.raw_os_error(), Some(14), "EFAULT: {read}");
    let wrote = buffers.readable().write_to(0, 0x1000, file.as_fd(), 0, false).unwrap_err();
    assert_eq!(wrote.raw_os_error(), Some(14), "EFAULT: {wrote}");
}

#[test]
fn a_transfer_that_fails_midway_has_moved_the_bytes_before() {
    let (region, guest) = region(0x1000, 0x2000);
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(GuestAddr(0x1000), 0x2000, Access::DeviceReadable);
    rustix::io::pwrite(&guest, b"kept", 0xffc).unwrap();
    rustix::fs::ftruncate(&guest, 0x1000).unwrap();
    let file = memfd(0);
    let error = buffers.readable().write_to(0, 0x2000, file.as_fd(), 0, false).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(14), "EFAULT: {error}");
    let file = File::from(file);
    let mut end = [0; 4];
    rustix::io::pread(&file, &mut end, 0xffc).unwrap();
    assert_eq!((file.metadata().unwrap().len(), &end), (0x1000, b"kept"));
}
