//! The fake hypervisor, held to what Linux's devices were seen to do on Xen 4.17. The tests in
//! `tests/xen/dom0/kernel` say the same of the real ones.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use vhost_user_core::sys::mmap::{Mapping, Protection};
use vhost_user_core::xen::{FakeXen, Frames, GrantCopy, GrantRef, XenDevice, XenOps};

use super::guest::*;

const LENGTH: usize = PAGE as usize;

fn frames(numbers: &[u64]) -> Frames<'_> {
    Frames { domid: DOMID, numbers }
}

fn reference(page: u32) -> GrantRef {
    GrantRef { domid: DOMID, reference: FIRST_REF + page }
}

fn gntdev(guest: &Guest) -> OwnedFd {
    guest.xen.device(XenDevice::Gntdev).unwrap()
}

/// The number of an error.
fn error<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Lists pages and maps them.
fn map(
    xen: &FakeXen,
    fd: &OwnedFd,
    pages: &[GrantRef],
    protection: Protection,
) -> std::io::Result<(Mapping, u64)> {
    let index = xen.list_grants(fd.as_fd(), pages)?;
    let area = xen.map_grants(fd.as_fd(), index, pages.len(), protection)?;
    Ok((area, index))
}

#[test]
fn a_foreign_map_call_succeeds_though_pages_failed() {
    let guest = Guest::foreign();
    let fd = guest.device(FOREIGN);
    let mut area = Mapping::reserved(3 * LENGTH).unwrap();
    let mut errors = [1; 3];
    let numbers = [FIRST_FRAME, 7, FIRST_FRAME + 1];
    let mapped = guest.xen.map_frames(fd.as_fd(), frames(&numbers), &mut area, 0, &mut errors);
    assert_eq!((mapped.is_ok(), errors), (true, [0, -libc::EINVAL, 0]));
    guest.xen.destroy(DOMID);
    let mapped = guest.xen.map_frames(fd.as_fd(), frames(&numbers), &mut area, 0, &mut errors);
    assert_eq!((mapped.is_ok(), errors), (true, [-libc::ESRCH; 3]));
}

#[test]
fn pages_that_are_paged_out_fail_the_foreign_map_call_too() {
    let guest = Guest::foreign();
    let fd = guest.device(FOREIGN);
    guest.xen.page_out(DOMID, FIRST_FRAME + 1, 2);
    let mut area = Mapping::reserved(2 * LENGTH).unwrap();
    let mut errors = [1; 2];
    let numbers = [FIRST_FRAME, FIRST_FRAME + 1];
    let mapped = guest.xen.map_frames(fd.as_fd(), frames(&numbers), &mut area, 0, &mut errors);
    assert_eq!((error(mapped), errors), (libc::ENOENT, [0, -libc::ENOENT]));
    let retry =
        |area: &mut Mapping| guest.xen.retry_frame(fd.as_fd(), frames(&numbers[1..]), area, LENGTH);
    assert_eq!(error(retry(&mut area)), libc::ENOENT);
    assert_eq!(retry(&mut area).unwrap(), 0);
}

#[test]
fn a_restricted_descriptor_reaches_one_domain() {
    let guest = Guest::foreign();
    let fd = guest.device(FOREIGN);
    guest.xen.restrict(fd.as_fd(), DOMID + 1).unwrap();
    let mut area = Mapping::reserved(LENGTH).unwrap();
    let numbers = [FIRST_FRAME];
    let mapped = guest.xen.map_frames(fd.as_fd(), frames(&numbers), &mut area, 0, &mut [0]);
    assert_eq!(error(mapped), libc::EPERM);
    assert_eq!(error(guest.xen.restrict(fd.as_fd(), DOMID)), libc::EINVAL);
}

#[test]
fn any_references_are_listed_and_one_bad_one_fails_the_mapping_of_all() {
    let guest = Guest::granting();
    let fd = gntdev(&guest);
    let stranger = GrantRef { domid: DOMID + 1, ..reference(0) };
    for bad in [GrantRef { reference: 1, ..reference(0) }, stranger] {
        let pages = [reference(0), bad];
        let index = guest.xen.list_grants(fd.as_fd(), &pages).unwrap();
        let mapped = guest.xen.map_grants(fd.as_fd(), index, 2, Protection::Read);
        assert_eq!(error(mapped), libc::EINVAL);
        assert_eq!(guest.xen.lists(), 1, "it is still to be given up");
        guest.xen.give_up_grants(fd.as_fd(), index, 2).unwrap();
    }
    guest.xen.set_max_grants(1);
    let listed = guest.xen.list_grants(fd.as_fd(), &[reference(0), reference(1)]);
    assert_eq!(error(listed), libc::EINVAL, "more than a call takes");
    assert_eq!((guest.xen.lists(), guest.xen.in_use(DOMID)), (0, vec![]));
}

#[test]
fn a_list_is_mapped_whole_and_once_and_its_pages_outlive_it() {
    let guest = Guest::granting();
    let fd = gntdev(&guest);
    let pages = [reference(0), reference(1)];
    let index = guest.xen.list_grants(fd.as_fd(), &pages).unwrap();
    for (index, count) in [(index, 1), (index, 3), (index + PAGE, 1)] {
        let mapped = guest.xen.map_grants(fd.as_fd(), index, count, Protection::Read);
        assert_eq!(error(mapped), libc::EINVAL);
    }
    let area = guest.xen.map_grants(fd.as_fd(), index, 2, Protection::Read).unwrap();
    let again = guest.xen.map_grants(fd.as_fd(), index, 2, Protection::Read);
    assert_eq!(error(again), libc::EINVAL);
    assert_eq!(error(guest.xen.give_up_grants(fd.as_fd(), index, 1)), libc::ENOENT);
    guest.xen.give_up_grants(fd.as_fd(), index, 2).unwrap();
    assert_eq!(error(guest.xen.give_up_grants(fd.as_fd(), index, 2)), libc::ENOENT);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF, FIRST_REF + 1]);
    assert!(!guest.xen.revoke(DOMID, FIRST_REF));
    drop(area);
    guest.xen.unmap_grants(fd.as_fd(), index, 2).unwrap();
    assert!(guest.xen.revoke(DOMID, FIRST_REF));
}

#[test]
fn a_grant_for_reading_is_mapped_for_nothing_else() {
    let guest = Guest::granting();
    let fd = gntdev(&guest);
    guest.xen.grant(DOMID, FIRST_REF, FIRST_FRAME, false);
    let writing = map(&guest.xen, &fd, &[reference(0)], Protection::ReadWrite);
    assert_eq!(error(writing), libc::EINVAL);
    map(&guest.xen, &fd, &[reference(0)], Protection::Read).unwrap();
}

#[test]
fn a_page_is_mapped_64_times_at_once() {
    let guest = Guest::granting();
    let fd = gntdev(&guest);
    let (_area, index) = map(&guest.xen, &fd, &[reference(0); 64], Protection::Read).unwrap();
    let more = map(&guest.xen, &fd, &[reference(0)], Protection::Read);
    assert_eq!(error(more), libc::EINVAL);
    guest.xen.unmap_grants(fd.as_fd(), index, 64).unwrap();
    map(&guest.xen, &fd, &[reference(0)], Protection::Read).unwrap();
}

#[test]
fn a_copy_call_succeeds_though_pieces_failed() {
    let guest = Guest::granting();
    let fd = gntdev(&guest);
    guest.xen.grant(DOMID, FIRST_REF + 1, FIRST_FRAME + 1, false);
    let local = [const { Cell::new(1_u8) }; 16];
    let piece =
        |grant, to_guest| GrantCopy { grant, offset: 100, local: &local, to_guest, status: 1 };
    let nobody = GrantRef { reference: 1, ..reference(0) };
    let mut pieces = [
        piece(reference(0), true),
        piece(reference(1), true),
        piece(nobody, false),
        piece(reference(1), false),
    ];
    guest.xen.copy_grants(fd.as_fd(), &mut pieces).unwrap();
    let statuses = pieces.map(|piece| piece.status);
    assert_eq!(statuses, [0, -1, -3, 0], "no grant for writing is -1, no grant at all is -3");
    let mut past = [GrantCopy { offset: 4090, ..piece(reference(0), false) }];
    assert_eq!(error(guest.xen.copy_grants(fd.as_fd(), &mut past)), libc::EINVAL);
}

#[test]
fn devices_are_told_apart_by_kind() {
    let guest = Guest::foreign();
    let (privcmd, gntdev) = (guest.device(FOREIGN), guest.device(IN_ADVANCE));
    let is = |kind, fd| guest.xen.is_device(kind, AsFd::as_fd(fd));
    assert!(is(XenDevice::Privcmd, &privcmd) && !is(XenDevice::Gntdev, &privcmd));
    assert!(is(XenDevice::Gntdev, &gntdev) && !is(XenDevice::Privcmd, &gntdev));
}
