//! The devices that come with regions: which are taken, replaced or refused.

use std::os::fd::AsFd;
use std::sync::Arc;

use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::XenOps;

use super::gate::Gate;
use super::guest::*;
use super::raw::*;

#[test]
fn a_descriptor_that_is_no_such_device_is_replaced_by_an_own_one() {
    for flags in [FOREIGN, IN_ADVANCE, ON_DEMAND] {
        for wrong in [FOREIGN, IN_ADVANCE] {
            let guest = Guest::for_flags(flags);
            let served = Served::disk(&guest, 0);
            let mut memory = guest.whole(RegionLayout::XenMerged, flags);
            memory.regions[0].fd = match (flags == FOREIGN) == (wrong == FOREIGN) {
                true => std::fs::File::open("/dev/null").unwrap().into(),
                false => guest.device(wrong),
            };
            let mut raw = Raw::start(&served, memory);
            assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 4096)]), (OK, 1));
        }
    }
}

#[test]
fn a_wrong_descriptor_is_refused_where_no_own_one_can_be_had() {
    for (flags, name) in [(FOREIGN, "/dev/xen/privcmd"), (ON_DEMAND, "/dev/xen/gntdev")] {
        let guest = Guest::for_flags(flags);
        guest.xen.set_can_open(false);
        let mut memory = guest.whole(RegionLayout::XenMerged, flags);
        memory.regions[0].fd = std::fs::File::open("/dev/null").unwrap().into();
        let why = refusal(&Served::disk(&guest, 0), &guest, memory);
        let what = format!("its descriptor is a character device (1:3), not {name}, which cannot");
        assert!(why.contains(&what), "{why}");
    }
}

#[test]
fn another_file_in_place_of_the_own_device_is_refused_as_such() {
    for (flags, name) in [
        (FOREIGN, "/dev/xen/privcmd"),
        (IN_ADVANCE, "/dev/xen/gntdev"),
        (ON_DEMAND, "/dev/xen/gntdev"),
    ] {
        let guest = Guest::for_flags(flags);
        guest.xen.set_opens_another(true);
        let mut memory = guest.whole(RegionLayout::XenMerged, flags);
        memory.regions[0].fd = std::fs::File::open("/proc").unwrap().into();
        let why = refusal(&Served::disk(&guest, 0), &guest, memory);
        let what = format!("is a directory, not {name}, which is a regular file here");
        assert!(why.ends_with(&what), "{why}");
    }
}

#[test]
fn a_descriptor_restricted_to_another_domain_is_refused() {
    let guest = Guest::foreign();
    let memory = guest.whole(RegionLayout::XenMerged, FOREIGN);
    guest.xen.restrict(memory.regions[0].fd.as_fd(), DOMID + 1).unwrap();
    let why = refusal(&Served::disk(&guest, 0), &guest, memory);
    assert!(why.contains("restricted to another domain"), "{why}");
}

#[test]
fn a_descriptor_that_cannot_be_restricted_is_refused_unless_the_kernel_is_too_old_for_that() {
    for (error, good) in [(libc::EPERM, false), (libc::EIO, false), (libc::ENOTTY, true)] {
        let guest = Guest::foreign();
        let (gate, _keeper) = Gate::new(&guest);
        gate.fail_restrictions(error);
        let disk = FileDisk::in_memory(1 << 20).unwrap();
        let device = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
        let served = Served::with(device, &guest, |xen| xen.access.ops = gate);
        let mut client = connect(&served);
        let told = client.set_xen_memory(&guest.whole(RegionLayout::XenMerged, FOREIGN));
        assert_eq!(told.is_ok(), good, "{error}: {told:?}");
    }
}
