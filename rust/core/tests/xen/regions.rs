//! Regions of granted pages that are mapped in advance: which page lies where, and what may be
//! done to it. The device copies what it reads in memory, as no system call would do it.

use std::sync::mpsc::{self, Receiver};

use vhost_user_core::frontend::XenRegion;
use vhost_user_core::wire::RegionLayout;

use super::device::Scripted;
use super::guest::*;
use super::raw::*;

/// The ring's region: its page and the half of the next.
const RING: u64 = 0x1800;
/// The rest, from there on, all but the first half page of each chunk's first.
const PAGES: u64 = 11;
/// Where the driver finds what the device wrote.
const TARGET: u64 = 64;

fn in_advance(guest: &Guest, offset: u64, size: u64) -> XenRegion {
    guest.region(offset, size, guest.memory.regions()[0].user().0 + offset, IN_ADVANCE)
}

/// Copies `len` bytes from one place of memory to another through the device.
fn copied(raw: &mut Raw, from: u64, to: u64, len: u64) {
    let base = raw.address(0);
    raw.push(0, &[(base + from, len as u32, false), (base + to, len as u32, true)]);
    raw.ring.publish();
    assert_eq!(raw.used().len as u64, len);
}

#[test]
fn a_region_in_several_calls_has_each_page_at_its_address() {
    let guest = Guest::granting();
    guest.xen.set_max_grants(4);
    let served = Served::new(Scripted::copying(), &guest, 0);
    // From the half of page 1 on: chunks of the pages 1 to 4, 5 to 8, 9 to 12.
    let size = PAGES * PAGE + 0x800;
    let regions = vec![
        in_advance(&guest, 0, RING),
        in_advance(&guest, RING, size),
        in_advance(&guest, TARGET * PAGE, 16 * PAGE),
    ];
    let last = regions[1].region;
    let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, regions));
    assert_eq!(guest.xen.calls().map_grants, 1 + 3 + 4, "4 pages in a call");
    let content = pattern(size as usize, 1);
    let at = |offset: u64| vhost_user_core::address::GuestAddr(guest.base() + offset);
    guest.memory.write(at(RING), &content).unwrap();
    copied(&mut raw, RING, TARGET * PAGE, size);
    assert!(raw.read(TARGET, size as usize) == content, "read through the region");
    // Across each seam, and to the last byte; read and written.
    for (from, len) in [(3 * PAGE, 2 * PAGE), (5 * PAGE - 1, 2), (8 * PAGE, 2 * PAGE)] {
        copied(&mut raw, RING + from, TARGET * PAGE, len);
        assert!(raw.read(TARGET, len as usize) == content[from as usize..][..len as usize]);
    }
    let mut turned = content;
    turned.reverse();
    guest.memory.write(at(TARGET * PAGE), &turned).unwrap();
    copied(&mut raw, TARGET * PAGE, RING, size);
    let mut written = vec![0; size as usize];
    guest.memory.read(at(RING), &mut written).unwrap();
    assert!(written == turned, "written through the region");
    let removed = XenRegion { region: last, fd: guest.device(IN_ADVANCE) };
    raw.client.remove_xen_region(&removed, RegionLayout::XenMerged).unwrap();
    let left = [0, 1].into_iter().chain(TARGET..TARGET + 16);
    assert_eq!(
        guest.xen.in_use(DOMID),
        left.map(|page| FIRST_REF + page as u32).collect::<Vec<_>>()
    );
}

#[test]
fn a_region_that_starts_inside_a_page_has_the_page_that_it_ends_in() {
    for flags in [IN_ADVANCE, FOREIGN] {
        let guest = Guest::for_flags(flags);
        let served = Served::new(Scripted::copying(), &guest, 0);
        let user = guest.memory.regions()[0].user().0;
        let region = |offset, size| guest.region(offset, size, user + offset, flags);
        // One page's size in two pages: the second half of one and the first half of the next.
        let regions = vec![region(0, PAGE), region(RING, PAGE), region(TARGET * PAGE, PAGE)];
        let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, regions));
        let calls = guest.xen.calls();
        assert_eq!(calls.grants + calls.frames, 1 + 2 + 1);
        let content = pattern(PAGE as usize, 2);
        raw.write(2, &content);
        copied(&mut raw, 2 * PAGE, TARGET * PAGE, 0x800);
        assert!(raw.read(TARGET, 0x800) == content[..0x800]);
        raw.write(TARGET, &content[0x800..]);
        copied(&mut raw, TARGET * PAGE, 2 * PAGE, 0x800);
        assert!(raw.read(2, 0x800) == content[0x800..]);
    }
}

/// A device that tells how many bytes it was asked to write, and writes none: where it may not,
/// that would be its end.
fn telling() -> (std::sync::Arc<Scripted>, Receiver<u64>) {
    let (to, told) = mpsc::channel();
    let device = Scripted::new(false, move |batch| {
        while let Some(request) = batch.next() {
            to.send(request.writable().len()).unwrap();
            batch.complete(request, 7);
        }
    });
    (device, told)
}

#[test]
fn no_device_is_asked_to_write_where_the_guest_has_granted_reading() {
    for pages_of_a_call in [65536, 1] {
        let guest = Guest::granting();
        guest.xen.set_max_grants(pages_of_a_call);
        let (device, told) = telling();
        let served = Served::new(device, &guest, 0);
        for page in [DATA_PAGE, DATA_PAGE + 1] {
            guest.xen.grant(DOMID, FIRST_REF + page as u32, FIRST_FRAME + page, false);
        }
        let regions = vec![
            in_advance(&guest, 0, DATA_PAGE * PAGE),
            in_advance(&guest, DATA_PAGE * PAGE, 2 * PAGE),
            in_advance(&guest, TARGET * PAGE, PAGE),
        ];
        let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, regions));
        let (read_only, writable) = (raw.address(DATA_PAGE), raw.address(TARGET));
        // All of it, a part of it, or the one byte that says how a request went.
        for (head, bad) in [(read_only, 8192), (read_only + 4000, 200)].into_iter().enumerate() {
            raw.push(2 * head as u16, &[(bad.0, bad.1, true), (writable, 1, true)]);
        }
        raw.push(8, &[(writable, 512, true), (read_only + 8191, 1, true)]);
        raw.push(12, &[(read_only, 8192, false), (writable, 512, true)]);
        raw.ring.publish();
        let mut used = [(); 4].map(|()| raw.used()).map(|used| (used.head, used.len));
        used.sort_unstable();
        assert_eq!(used, [(0, 0), (2, 0), (8, 0), (12, 7)]);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [512], "the good request alone");
    }
}
