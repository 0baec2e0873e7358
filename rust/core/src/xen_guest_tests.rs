use super::*;
use crate::sys::mmap::{Mapping, Protection};
use crate::xen::{Frames, GrantRef};

fn guest(flags: u64) -> XenGuest {
    XenGuest::new(XenFields { flags, domid: 3 }, 4 * XEN_PAGE).unwrap()
}

#[test]
fn frames_are_in_use_while_they_are_mapped_in_this_process() {
    let guest = guest(FOREIGN);
    assert!(guest.in_use().unwrap().is_empty());
    let mut area = Mapping::reserved(2 * XEN_PAGE as usize).unwrap();
    let frames = Frames { domid: 3, numbers: &[FIRST_FRAME + 3, FIRST_FRAME + 1] };
    guest.ops().map_frames(guest.as_fd(), frames, &mut area, 0, &mut [1, 1]).unwrap();
    assert_eq!(guest.in_use().unwrap(), [FIRST_FRAME + 1, FIRST_FRAME + 3]);
    drop(area);
    assert!(guest.in_use().unwrap().is_empty());
}

#[test]
fn references_are_in_use_until_they_are_given_back() {
    let guest = guest(0x102);
    let grants = [GrantRef { domid: 3, reference: FIRST_REFERENCE + 2 }];
    let (ops, fd) = (guest.ops(), guest.as_fd());
    let index = ops.list_grants(fd, &grants).unwrap();
    drop(ops.map_grants(fd, index, 1, Protection::ReadWrite).unwrap());
    ops.give_up_grants(fd, index, 1).unwrap();
    assert_eq!(guest.in_use().unwrap(), [u64::from(FIRST_REFERENCE) + 2]);
    ops.unmap_grants(fd, index, 1).unwrap();
    assert!(guest.in_use().unwrap().is_empty());
}
