//! How much of this process's addresses the memory of front-ends may have. What is mapped counts
//! for the whole process: so the tests run one after the other.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::memory::{Extent, MemoryOptions, MemoryPolicy, Region, RegionError, Whose};

const PAGE: u64 = 4096;
const TIB: u64 = 1 << 40;

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that says it is so long, and takes no memory.
fn sparse(size: u64) -> OwnedFd {
    let fd = memfd_create("limits", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

fn map(policy: &MemoryPolicy, size: u64, offset: u64) -> Result<Arc<Region>, RegionError> {
    let extent = Extent { guest: GuestAddr(0), user: UserAddr(0), size };
    Region::map(policy, extent, offset, sparse(offset + size))
}

fn limited(session: Option<u64>, process: Option<u64>) -> MemoryPolicy {
    let options = MemoryOptions { session_limit: session, process_limit: process, any_file: false };
    MemoryPolicy::new(options)
}

/// Who has too much: bytes wanted, mapped, allowed.
fn too_much(result: Result<Arc<Region>, RegionError>) -> (Whose, [u64; 3]) {
    match result {
        Err(RegionError::TooMuch { bytes, mapped, most, whose }) => (whose, [bytes, mapped, most]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_one_front_end_maps_is_bounded_as_a_sum() {
    let _alone = one_at_a_time();
    let policy = limited(Some(8 * PAGE), None);
    let first = map(&policy, 5 * PAGE, 0).unwrap();
    let _second = map(&policy, 3 * PAGE, 0).unwrap();
    let refused = too_much(map(&policy, PAGE, 0));
    assert_eq!(refused, (Whose::Session, [PAGE, 8 * PAGE, 8 * PAGE]));
    drop(first);
    assert!(map(&policy, 6 * PAGE, 0).is_err());
    map(&policy, 5 * PAGE, 0).unwrap();
}

#[test]
fn what_counts_is_what_is_mapped_in_whole_pages() {
    let _alone = one_at_a_time();
    let policy = limited(Some(2 * PAGE), None);
    assert_eq!(too_much(map(&policy, 2 * PAGE, 1)).1, [3 * PAGE, 0, 2 * PAGE]);
    map(&policy, 2 * PAGE - 1, 1).unwrap();
}

#[test]
fn what_all_front_ends_map_is_bounded_as_a_sum() {
    let _alone = one_at_a_time();
    let [one, other] = [(); 2].map(|()| limited(None, Some(8 * PAGE)));
    let first = map(&one, 5 * PAGE, 0).unwrap();
    let refused = too_much(map(&other, 4 * PAGE, 0));
    assert_eq!(refused, (Whose::Process, [4 * PAGE, 5 * PAGE, 8 * PAGE]));
    drop(first);
    // Nothing was counted for the session that was refused.
    let all = map(&other, 8 * PAGE, 0).unwrap();
    drop(all);
    map(&limited(Some(4 * PAGE), None), 4 * PAGE, 0).unwrap();
}

#[test]
fn by_default_a_front_end_has_a_quarter_of_the_addresses_and_all_have_half() {
    let _alone = one_at_a_time();
    // 47 bits of addresses on x86-64, 48 on most others.
    let addresses: u64 = if cfg!(target_arch = "x86_64") { 128 * TIB } else { 256 * TIB };
    let [one, two, three] = [(); 3].map(|()| MemoryPolicy::default());
    let quarter = addresses / 4;
    let refused = too_much(map(&one, quarter + PAGE, 0));
    assert_eq!(refused, (Whose::Session, [quarter + PAGE, 0, quarter]));
    let _first = map(&one, quarter, 0).unwrap();
    let _second = map(&two, quarter, 0).unwrap();
    assert_eq!(too_much(map(&three, PAGE, 0)), (Whose::Process, [PAGE, 2 * quarter, 2 * quarter]));
}

#[test]
fn a_region_that_cannot_be_mapped_does_not_count() {
    let _alone = one_at_a_time();
    let policy = limited(Some(4 * PAGE), None);
    let extent = Extent { guest: GuestAddr(0), user: UserAddr(0), size: 4 * PAGE };
    assert!(Region::map(&policy, extent, 0, sparse(PAGE)).is_err());
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(Region::map(&policy, extent, 0, reader).is_err());
    map(&policy, 4 * PAGE, 0).unwrap();
}

#[test]
fn the_refusal_says_whose_limit_it_is_and_all_numbers() {
    let _alone = one_at_a_time();
    let text = map(&limited(Some(PAGE), None), 2 * PAGE, 0).unwrap_err().to_string();
    assert_eq!(
        text,
        "its 0x2000 bytes and the 0x0 that this front-end already mapped, those of former tables \
         that are still in use among them, are more than the limit of 0x1000"
    );
}
